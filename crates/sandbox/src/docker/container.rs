//! What a container is made of.
//!
//! Its root is the image, read-only. Whatever may be written lies in memory, in several places whose sizes add up to the
//! sandbox's disk, because one file system cannot be seen in many places without a privilege that no process in here has.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits,
};

use super::engine::{DOOR, INSTANCE, Ids, Kind, SANDBOX};
use crate::namespaces::child::exit_variables;
use crate::namespaces::root::MASKED;
use crate::provider::{Access, EXIT_PORT, Error, Limits, Resources, SandboxId};
use crate::supervisor::client::Door;
use crate::supervisor::guests::PROGRAM;

/// Where the door's folder is mounted.
const INSIDE: &str = "/run/posthouse";

/// The lowest id of a container's user, where ids inside are ids outside: above what people, services and other container
/// tools use, below those of the sandboxes of namespaces. Each sandbox has its own, so that none shares what the kernel
/// counts by user.
const FIRST_ID: u32 = 0x6fff_0000;
/// The same where the engine translates ids, of which there are 65,536 then.
const FIRST_TRANSLATED_ID: u32 = 10_000;

/// What may be written, with its share of the disk in 64ths. A folder of the agent's is large, one that programs expect is
/// there.
const WRITABLE: &[(&str, u64)] = &[
    ("/workspace", 32),
    ("/home/agent", 12),
    ("/tmp", 9),
    ("/mnt/session", 4),
    ("/var/tmp", 1),
    ("/run", 1),
];
/// What the volumes that an image asks for share between them.
const VOLUMES_SHARE: u64 = 2;
const SHARED_MEMORY_SHARE: u64 = 3;
const SHARES: u64 = 64;
/// Far more than a sandbox has, whose control group counts them.
const PROCESSES_OF_A_USER: u64 = 1 << 15;
/// More than any image that is a place to work in has.
const VOLUMES_MAX: usize = 16;

/// As in the sandboxes of namespaces.
const BYTES_PER_FILE: u64 = 16 << 10;
/// Fewer would not do for a socket or two.
const FILES_MIN: u64 = 64;

/// What is hidden besides what is hidden in the sandboxes of namespaces, all of it below /proc there.
const ALSO_MASKED: &[&str] = &["/proc/timer_stats", "/sys"];
/// What a process of some privilege could still write.
const READ_ONLY: &[&str] = &["/proc/sys"];

/// What package managers need of root: to give files and processes to others, and to change those of others.
const BUILDERS_CAPABILITIES: &[&str] =
    &["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"];

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Sandbox,
    /// To install packages in: its root may be written, and its user is root.
    Builder,
}

/// What is the same for a container whenever it is made again.
pub(crate) struct Plan<'a> {
    pub(crate) id: &'a SandboxId,
    pub(crate) instance: &'a str,
    pub(crate) image: &'a str,
    pub(crate) runtime: Option<&'a str>,
    /// The volumes that the image asks for.
    pub(crate) volumes: &'a [String],
    /// With figures that agree with each other.
    pub(crate) resources: &'a Resources,
    pub(crate) door: &'a Door,
    pub(crate) ids: Ids,
    pub(crate) kind: Kind,
    pub(crate) role: Role,
}

/// The name by which a container is found again.
pub(crate) fn name(instance: &str, id: &SandboxId) -> String {
    format!("posthouse-{instance}-{id}")
}

/// The lowest id of whoever calls from such a container, where that can be foreseen: not where ids are translated, nor where
/// the runtime is a kernel of its own, which makes connections for its processes.
pub(crate) fn first_id(ids: Ids, runtime: Option<&str>) -> Option<u32> {
    let plain = runtime.is_none_or(|runtime| ["runc", "crun", "io.containerd.runc.v2"].contains(&runtime));
    (ids == Ids::Same && plain).then_some(FIRST_ID)
}

impl Plan<'_> {
    /// The engine's form of it.
    pub(crate) fn body(&self) -> Result<ContainerCreateBody, Error> {
        // Root inside has no rights that could be few or many: nobody is root there.
        let Resources { limits, mounts: _, hostname, network, rights: _, base: _, runtime: _, restore } =
            self.resources;
        let places = self.tmpfs(limits.disk_bytes)?;
        let mut command = vec!["--connect".to_owned(), INSIDE.to_owned()];
        let own = match self.role {
            Role::Sandbox => ["HOME=/home/agent", "USER=agent", "LOGNAME=agent"],
            Role::Builder => ["HOME=/root", "USER=root", "LOGNAME=root"],
        };
        let mut environment: Vec<String> = own.map(str::to_owned).into();
        environment.extend(["LANG=C.UTF-8", "TERM=dumb"].map(str::to_owned));
        if network.is_some() {
            command.extend(["--exit".to_owned(), EXIT_PORT.to_string()]);
        }
        // A layer has the variables of its builder.
        if network.is_some() && self.role == Role::Sandbox {
            environment.extend(exit_variables());
        }
        if restore.is_some() {
            command.push("--restore".to_owned());
        }
        let mut kept: Vec<&String> = places.keys().collect();
        kept.sort();
        command.extend(kept.into_iter().flat_map(|place| ["--place".to_owned(), place.clone()]));
        let labels =
            [(INSTANCE, self.instance.to_owned()), (SANDBOX, self.id.to_string()), (DOOR, self.door_name())];
        Ok(ContainerCreateBody {
            image: Some(self.image.to_owned()),
            hostname: Some(hostname.clone()),
            user: Some(format!("{0}:{0}", self.user())),
            entrypoint: Some(vec![format!("{INSIDE}/{PROGRAM}")]),
            cmd: Some(command),
            working_dir: Some("/".to_owned()),
            env: Some(environment),
            // What an image would have run beside us, again and again.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            // `tools` minds no polite signal, and its end is no loss that a delay could spare.
            stop_signal: Some("SIGKILL".to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
            host_config: Some(HostConfig {
                // Programs look themselves up.
                extra_hosts: Some(vec![format!("{hostname}:127.0.0.1")]),
                tmpfs: Some(places),
                ..self.host(limits)?
            }),
            ..ContainerCreateBody::default()
        })
    }

    /// Which door the container is made for.
    pub(crate) fn door_name(&self) -> String {
        self.door.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn user(&self) -> u32 {
        if self.role == Role::Builder {
            return 0;
        }
        let first = match self.ids {
            Ids::Same => FIRST_ID,
            Ids::Translated => FIRST_TRANSLATED_ID,
        };
        first + self.door.slot
    }

    fn host(&self, limits: &Limits) -> Result<HostConfig, Error> {
        let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
        let Limits { memory_bytes, processes, file_size_bytes, open_files, disk_bytes, cpu_percent } =
            *limits;
        let mut ulimits = vec![
            ("nofile", open_files),
            ("fsize", file_size_bytes),
            ("core", 0),
            // No more than the kernel gives by default: an engine may lack the privilege to raise a hard limit.
            ("memlock", 64 << 10),
            ("sigpending", 4096),
            ("msgqueue", 819_200),
        ];
        if self.kind == Kind::Podman {
            // Counted by user, so it is no bound of one sandbox. Podman's own may be more than its root may give.
            ulimits.push(("nproc", PROCESSES_OF_A_USER));
        }
        let masked = MASKED.iter().map(|name| format!("/proc/{name}"));
        let masked: Vec<String> = masked.chain(ALSO_MASKED.iter().map(|path| (*path).to_owned())).collect();
        Ok(HostConfig {
            runtime: self.runtime.map(str::to_owned),
            // It goes with its process 1, which goes with its control socket.
            auto_remove: Some(true),
            init: Some(false),
            network_mode: Some("none".to_owned()),
            ipc_mode: Some("private".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            readonly_rootfs: Some(self.role == Role::Sandbox),
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: (self.role == Role::Builder)
                .then(|| BUILDERS_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()),
            // The engine's own system call filter stays, and ours comes on top of it.
            security_opt: Some(match self.kind {
                Kind::Docker => vec!["no-new-privileges".to_owned()],
                // It reads no list of masked paths.
                Kind::Podman => vec!["no-new-privileges".to_owned(), format!("mask={}", masked.join(":"))],
            }),
            masked_paths: Some(masked),
            readonly_paths: Some(READ_ONLY.iter().map(|path| (*path).to_owned()).collect()),
            memory: number(memory_bytes),
            // With it: no swap.
            memory_swap: number(memory_bytes),
            pids_limit: number(processes),
            nano_cpus: number(u64::from(cpu_percent) * 10_000_000),
            ulimits: Some(
                ulimits
                    .into_iter()
                    .map(|(name, value)| ResourcesUlimits {
                        name: Some(name.to_owned()),
                        soft: number(value),
                        hard: number(value),
                    })
                    .collect(),
            ),
            shm_size: number(share(disk_bytes, SHARED_MEMORY_SHARE)),
            mounts: Some(self.mounts()?),
            // What process 1 prints is nobody's business, and would fill the host's disk.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ..HostConfig::default()
        })
    }

    /// The places that can be written. Together they hold `disk_bytes`, less than a page for each.
    fn tmpfs(&self, disk_bytes: u64) -> Result<HashMap<String, String>, Error> {
        if self.volumes.len() > VOLUMES_MAX {
            return Err(Error::refused(format!("the image asks for more than {VOLUMES_MAX} volumes")));
        }
        let each = share(disk_bytes, VOLUMES_SHARE) / (self.volumes.len() as u64).max(1);
        let volumes = self.volumes.iter().map(|path| (path.as_str(), each));
        // What a builder writes elsewhere is its root's, which lies on the disk.
        let is_there = |path: &str| self.role == Role::Sandbox || path == "/run";
        let own = WRITABLE.iter().filter(|(path, _)| is_there(path));
        let own = own.map(|(path, part)| (*path, share(disk_bytes, *part)));
        let is_mounted =
            |path: &str| self.resources.mounts.iter().any(|mount| mount.inside == Path::new(path));
        let user = self.user();
        // Ours come last: where an image wants a volume at the same place, ours it is.
        let places = volumes.chain(own).filter(|(path, _)| !is_mounted(path));
        Ok(places
            .map(|(path, bytes)| {
                let files = (bytes / BYTES_PER_FILE).max(FILES_MIN);
                let options = match self.kind {
                    Kind::Docker => format!(
                        "rw,exec,nosuid,nodev,size={bytes},nr_inodes={files},uid={user},gid={user},mode=755"
                    ),
                    // Podman knows neither owner nor number of files; nobody else is in there.
                    Kind::Podman => format!("rw,exec,nosuid,nodev,size={bytes},mode=1777,notmpcopyup"),
                };
                (path.to_owned(), options)
            })
            .collect())
    }

    fn mounts(&self) -> Result<Vec<Mount>, Error> {
        let bind = |host: &Path, inside: &Path, access: Access| {
            let text = |path: &Path| {
                path.to_str().map(str::to_owned).ok_or_else(|| {
                    Error::refused(format!("{} is not Unicode, which engines insist on", path.display()))
                })
            };
            Ok(Mount {
                typ: Some(MountType::BIND),
                source: Some(text(host)?),
                target: Some(text(inside)?),
                read_only: Some(access == Access::ReadOnly),
                bind_options: Some(MountBindOptions {
                    propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
                    ..MountBindOptions::default()
                }),
                ..Mount::default()
            })
        };
        // Read-only: connecting to a socket writes nothing to the file system that it lies in.
        let door = bind(&self.door.folder, Path::new(INSIDE), Access::ReadOnly);
        let folders = self.resources.mounts.iter().map(|mount| {
            match mount.inside.starts_with(INSIDE) || Path::new(INSIDE).starts_with(&mount.inside) {
                true => Err(Error::refused(format!(
                    "mount at {}: this folder is the sandbox's own",
                    mount.inside.display()
                ))),
                false => bind(&mount.host, &mount.inside, mount.access),
            }
        });
        std::iter::once(door).chain(folders).collect()
    }
}

fn share(disk_bytes: u64, part: u64) -> u64 {
    disk_bytes / SHARES * part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(volumes: &[&str], kind: Kind) -> HostConfig {
        let volumes: Vec<String> = volumes.iter().map(|path| (*path).to_owned()).collect();
        let resources = Resources::default();
        let id = SandboxId::parse("a").unwrap();
        let door = Door { folder: "/data/doors/7-1".into(), slot: 7 };
        let plan = Plan {
            id: &id,
            instance: "i",
            image: "x",
            runtime: None,
            volumes: &volumes,
            resources: &resources,
            door: &door,
            ids: Ids::Same,
            kind,
            role: Role::Sandbox,
        };
        plan.body().unwrap().host_config.unwrap()
    }

    #[test]
    fn all_that_can_be_written_adds_up_to_the_disk() {
        for volumes in [&[][..], &["/data"], &["/data", "/workspace", "/var/lib/x"]] {
            for kind in [Kind::Docker, Kind::Podman] {
                let host = host(volumes, kind);
                let size = |options: &String| {
                    let size = options.split(',').find_map(|option| option.strip_prefix("size=")).unwrap();
                    size.parse::<u64>().unwrap()
                };
                let places = host.tmpfs.unwrap();
                assert!(
                    volumes.iter().all(|volume| places.contains_key(*volume)),
                    "no volume on the host's disk"
                );
                let sum: u64 = places.values().map(size).sum();
                let sum = sum + u64::try_from(host.shm_size.unwrap()).unwrap();
                assert!(
                    sum <= Limits::default().disk_bytes && sum > Limits::default().disk_bytes / 8 * 7,
                    "{sum}"
                );
            }
        }
    }

    #[test]
    fn nobody_is_root_and_nothing_is_left_unsaid() {
        let host = host(&[], Kind::Docker);
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.network_mode.unwrap(), "none");
        assert_eq!((host.readonly_rootfs, host.privileged), (Some(true), Some(false)));
        assert_eq!(host.memory, host.memory_swap);
        assert!(host.ulimits.unwrap().iter().any(|limit| limit.name.as_deref() == Some("nofile")));
    }

    #[test]
    fn the_shares_are_a_whole() {
        let own: u64 = WRITABLE.iter().map(|(_, part)| part).sum();
        assert_eq!(own + VOLUMES_SHARE + SHARED_MEMORY_SHARE, SHARES);
    }
}
