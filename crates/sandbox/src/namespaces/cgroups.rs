//! Control groups: what counts and limits all processes of a sandbox together.
//!
//! Plain folders and files, version 1 (as root) and version 2 (where a subtree was delegated to us), below the group in which
//! the supervisor itself runs, so that limits on the server hold for its sandboxes too. It refuses to move any process
//! but those of sandboxes, and to use a group that somebody else keeps.
//!
//! ```text
//! <own group>/posthouse-<instance>/<sandbox id>
//! ```

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::provider::Limits;

/// A resource that a group can limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    Memory,
    Processes,
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Processes, Controller::Cpu];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Cpu => "cpu",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One hierarchy that we may use, and what it limits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    controllers: Vec<Controller>,
    /// Our folder; the folders of the sandboxes lie in it.
    folder: PathBuf,
}

/// The hierarchies of this machine in which sandboxes get groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    hierarchies: Vec<Hierarchy>,
}

/// Processor time is shared out in slices of this many microseconds.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;
/// A sandbox's weight against other work at the same level, a quarter of the usual: under load the server goes first.
const CPU_SHARES: &str = "256";
const CPU_WEIGHT: &str = "25";

impl Groups {
    /// Finds and prepares what this process may use; nothing where it may use nothing.
    pub(crate) fn find(instance: &str) -> Self {
        Self::prepare(&own(), instance)
    }

    fn prepare(own: &[OwnGroup], instance: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let name = format!("posthouse-{instance}");
        for group in own {
            let taken = |controller: &Controller| {
                hierarchies.iter().any(|known| known.controllers.contains(controller))
            };
            let found = match group {
                OwnGroup::One { folder, controllers } => {
                    let wanted = controllers.iter().copied().filter(|one| !taken(one)).collect();
                    prepare_one(folder, wanted, &name)
                }
                OwnGroup::Two { folder } => prepare_two(folder, &name),
            };
            hierarchies.extend(found);
        }
        Self { hierarchies }
    }

    /// The groups in which this process is, whether or not it may make any below them: their limits hold for it all the same.
    pub(crate) fn own_folders() -> Vec<PathBuf> {
        let folder = |own| match own {
            OwnGroup::One { folder, controllers } => {
                controllers.contains(&Controller::Memory).then_some(folder)
            }
            OwnGroup::Two { folder } => Some(folder),
        };
        own().into_iter().filter_map(folder).collect()
    }

    /// Whether groups limit this.
    pub(crate) fn limits(&self, controller: Controller) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    /// "version 1" or "version 2", for people.
    pub(crate) fn describe(&self, controller: Controller) -> Option<&'static str> {
        let found = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))?;
        Some(match found.version {
            Version::One => "control group version 1",
            Version::Two => "control group version 2",
        })
    }

    /// Our folders, to be remembered by whoever cleans up after us.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.folder.as_path())
    }

    /// Makes the group of a sandbox, limits set, no process in it.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group { folders: Vec::new() };
        for Hierarchy { version, controllers, folder } in &self.hierarchies {
            let folder = folder.join(name);
            match fs::create_dir(&folder) {
                Ok(()) => {}
                // Left by a sandbox of that name whose last process is still going.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            group.folders.push((*version, folder.clone()));
            for controller in controllers {
                set_limits(*version, *controller, &folder, limits)?;
            }
        }
        Ok(group)
    }

    /// Removes our own folders, once no sandbox is left.
    pub(crate) fn remove(&self) {
        for folder in self.folders() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The group of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Group {
    folders: Vec<(Version, PathBuf)>,
}

impl Group {
    /// The ways in, opened by us for a process that is still to be born.
    ///
    /// A process that is *put* into a group waits until every processor has passed a quiet point, 10 ms and more on a busy
    /// machine. A process that goes in by itself, or is born there, does not.
    pub(crate) fn doors(&self) -> io::Result<Doors> {
        let mut doors = Doors { early: Vec::new(), late: Vec::new(), birthplace: None };
        for (version, folder) in &self.folders {
            match version {
                Version::One => {
                    let tasks = fs::OpenOptions::new().write(true).open(folder.join("tasks"))?;
                    let shares_time = folder.join("cpu.shares").exists();
                    if shares_time { doors.late.push(tasks) } else { doors.early.push(tasks) }
                }
                Version::Two => doors.birthplace = Some(fs::File::open(folder)?),
            }
        }
        Ok(doors)
    }

    /// Memory in use, where a group counts it.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.folders.iter().find_map(|(version, folder)| {
            let file = match version {
                Version::One => "memory.usage_in_bytes",
                Version::Two => "memory.current",
            };
            fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
        })
    }

    /// How many processes the kernel has killed here for want of memory.
    pub(crate) fn memory_kills(&self) -> u64 {
        let counted = self.folders.iter().find_map(|(version, folder)| {
            let file = match version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            };
            let text = fs::read_to_string(folder.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        });
        counted.unwrap_or(0)
    }

    /// Removes the group. `false` while a process is still on its way out.
    pub(crate) fn remove(&self) -> bool {
        let removed = |folder: &Path| match fs::remove_dir(folder) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        self.folders.iter().fold(true, |all, (_, folder)| removed(folder) && all)
    }
}

/// How a new process gets into its group.
pub(crate) struct Doors {
    early: Vec<fs::File>,
    /// Where a process is made slower: entered when the work is done that somebody waits for.
    late: Vec<fs::File>,
    birthplace: Option<fs::File>,
}

impl Doors {
    /// The version 2 group to be born in.
    pub(crate) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling process, which has one thread, into the version 1 groups that count what it uses.
    pub(crate) fn enter_early(&self) -> io::Result<()> {
        enter(&self.early)
    }

    /// And into those that share out the processors. From then on it is in all of its groups.
    pub(crate) fn enter_late(&self) -> io::Result<()> {
        enter(&self.late)
    }
}

/// 0 stands for whoever writes; and it is the one form that takes no machine-wide lock.
fn enter(groups: &[fs::File]) -> io::Result<()> {
    groups.iter().try_for_each(|mut tasks| tasks.write_all(b"0"))
}

/// Kills and removes what an earlier supervisor left in `folder`. `false` if some of it is still there.
pub(crate) fn clear(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return true };
    let mut empty = true;
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let processes = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        for pid in
            processes.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        empty &= fs::remove_dir(entry.path()).is_ok();
    }
    empty && fs::remove_dir(folder).is_ok()
}

/// A group in which this process is.
#[derive(Debug, PartialEq, Eq)]
enum OwnGroup {
    One { folder: PathBuf, controllers: Vec<Controller> },
    Two { folder: PathBuf },
}

/// The groups of this process.
fn own() -> Vec<OwnGroup> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    own_groups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// Joins what `/proc/self/cgroup` and `/proc/self/mountinfo` say.
fn own_groups(memberships: &str, mounts: &str) -> Vec<OwnGroup> {
    let mut groups = Vec::new();
    for line in memberships.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        let Some(folder) = mounts.lines().find_map(|mount| mounted_at(mount, &names, path)) else { continue };
        let controllers: Vec<Controller> =
            CONTROLLERS.into_iter().filter(|controller| names.contains(&controller.name())).collect();
        if names.is_empty() {
            groups.push(OwnGroup::Two { folder });
        } else if !controllers.is_empty() {
            groups.push(OwnGroup::One { folder, controllers });
        }
    }
    groups
}

/// The folder of the group `path`, if this line of `mountinfo` is the mount of its hierarchy.
fn mounted_at(line: &str, names: &[&str], path: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, _source, options) = (file_system.next()?, file_system.next()?, file_system.next()?);
    let right_kind = match kind {
        "cgroup2" => names.is_empty(),
        "cgroup" => !names.is_empty() && options.split(',').any(|option| names.contains(&option)),
        _ => false,
    };
    if !right_kind {
        return None;
    }
    let below = if root == "/" { path } else { path.strip_prefix(root)? };
    Some(Path::new(point).join(below.trim_start_matches('/')))
}

fn prepare_one(own: &Path, controllers: Vec<Controller>, name: &str) -> Option<Hierarchy> {
    if controllers.is_empty() {
        return None;
    }
    let folder = own.join(name);
    make(&folder)?;
    // Only old kernels have a choice here, and the wrong default.
    let _ = fs::write(folder.join("memory.use_hierarchy"), "1");
    Some(Hierarchy { version: Version::One, controllers, folder })
}

/// Version 2 hands controllers down only from groups that hold no process, so they come either from our own group (where it is the
/// machine's root) or from a parent that was delegated to us on purpose.
fn prepare_two(own: &Path, name: &str) -> Option<Hierarchy> {
    let parent = own.parent().filter(|parent| was_delegated(parent));
    [Some(own), parent].into_iter().flatten().find_map(|base| {
        let folder = base.join(name);
        make(&folder)?;
        for controller in CONTROLLERS {
            let _ = fs::write(base.join("cgroup.subtree_control"), format!("+{}", controller.name()));
        }
        let given = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let controllers: Vec<Controller> = CONTROLLERS
            .into_iter()
            .filter(|controller| given.split_whitespace().any(|name| name == controller.name()))
            .filter(|controller| {
                fs::write(folder.join("cgroup.subtree_control"), format!("+{}", controller.name())).is_ok()
            })
            .collect();
        if controllers.is_empty() {
            let _ = fs::remove_dir(&folder);
            return None;
        }
        Some(Hierarchy { version: Version::Two, controllers, folder })
    })
}

fn make(folder: &Path) -> Option<()> {
    match fs::create_dir(folder) {
        Ok(()) => Some(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Some(()),
        Err(_) => None,
    }
}

/// systemd marks the groups that it gives away.
fn was_delegated(folder: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        rustix::fs::getxattr(folder, *name, &mut value[..]).is_ok_and(|length| &value[..length] == b"1")
    })
}

fn set_limits(version: Version, controller: Controller, folder: &Path, limits: &Limits) -> io::Result<()> {
    let set = |file: &str, value: &str| write(&folder.join(file), value);
    let memory = limits.memory_bytes.to_string();
    let quota = u64::from(limits.cpu_percent) * CPU_PERIOD_MICROSECONDS / 100;
    match (version, controller) {
        (Version::One, Controller::Memory) => {
            set("memory.limit_in_bytes", &memory)?;
            // There only where the kernel counts swap; then memory and swap together get the same bound.
            let _ = set("memory.memsw.limit_in_bytes", &memory);
            Ok(())
        }
        (Version::Two, Controller::Memory) => {
            set("memory.max", &memory)?;
            let _ = set("memory.swap.max", "0");
            Ok(())
        }
        (_, Controller::Processes) => set("pids.max", &limits.processes.to_string()),
        (Version::One, Controller::Cpu) => {
            set("cpu.cfs_period_us", &CPU_PERIOD_MICROSECONDS.to_string())?;
            set("cpu.cfs_quota_us", &quota.to_string())?;
            set("cpu.shares", CPU_SHARES)
        }
        (Version::Two, Controller::Cpu) => {
            set("cpu.max", &format!("{quota} {CPU_PERIOD_MICROSECONDS}"))?;
            set("cpu.weight", CPU_WEIGHT)
        }
    }
}

/// Control files take one whole value in one write and are never created.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro
31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:29 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn own_groups_join_memberships_and_mounts() {
        let memberships = "9:pids:/\n4:memory:/box/a\n2:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n";
        let expected = vec![
            OwnGroup::One { folder: "/sys/fs/cgroup/memory/a".into(), controllers: vec![Controller::Memory] },
            OwnGroup::One {
                folder: "/sys/fs/cgroup/cpu,cpuacct/b".into(),
                controllers: vec![Controller::Cpu],
            },
            OwnGroup::Two { folder: "/sys/fs/cgroup/unified/d".into() },
        ];
        assert_eq!(own_groups(memberships, MOUNTS), expected);
    }

    fn files(folder: &Path, names: &[&str]) {
        fs::create_dir_all(folder).unwrap();
        for name in names {
            fs::write(folder.join(name), "").unwrap();
        }
    }

    #[test]
    fn version_1_limits_are_written_before_a_process_enters() {
        let root = tempfile::tempdir().unwrap();
        let own = OwnGroup::One { folder: root.path().to_owned(), controllers: CONTROLLERS.to_vec() };
        let groups = Groups::prepare(&[own], "x");
        let folder = root.path().join("posthouse-x/a");
        let names = [
            "memory.limit_in_bytes",
            "pids.max",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.shares",
            "tasks",
        ];
        files(&folder, &names);

        let limits = Limits { memory_bytes: 1000, processes: 7, cpu_percent: 150, ..Limits::default() };
        let doors = groups.create("a", &limits).unwrap().doors().unwrap();
        doors.enter_early().and_then(|()| doors.enter_late()).unwrap();

        let written = names.map(|name| fs::read_to_string(folder.join(name)).unwrap());
        assert_eq!(written, ["1000", "7", "100000", "150000", "256", "0"]);
    }

    #[test]
    fn version_2_uses_the_controllers_that_it_is_given() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join("posthouse-x");
        files(&ours, &[]);
        fs::write(ours.join("cgroup.controllers"), "cpuset cpu memory pids\n").unwrap();
        let groups = Groups::prepare(&[OwnGroup::Two { folder: root.path().to_owned() }], "x");
        assert!(CONTROLLERS.into_iter().all(|controller| groups.limits(controller)));

        let folder = ours.join("a");
        let names = ["memory.max", "pids.max", "cpu.max", "cpu.weight"];
        files(&folder, &names);
        groups
            .create("a", &Limits { memory_bytes: 1000, processes: 7, cpu_percent: 50, ..Limits::default() })
            .unwrap();
        let written = names.map(|name| fs::read_to_string(folder.join(name)).unwrap());
        assert_eq!(written, ["1000", "7", "50000 100000", "25"]);
    }

    #[test]
    fn a_machine_without_usable_groups_limits_nothing() {
        let root = tempfile::tempdir().unwrap();
        let groups = Groups::prepare(&[OwnGroup::Two { folder: root.path().to_owned() }], "x");
        assert!(!CONTROLLERS.into_iter().any(|controller| groups.limits(controller)));
        assert!(!root.path().join("posthouse-x").exists() || fs::read_dir(root.path()).unwrap().count() <= 2);
    }
}
