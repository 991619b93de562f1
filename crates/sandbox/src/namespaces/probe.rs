//! Finding out what this machine allows, by trying it in a child that is thrown away.
//!
//! Distributions, containers and administrators switch parts of this off in many ways, and a version number tells about
//! none of them. The findings choose the profile; the report tells people.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cgroups::{Controller, Groups};
use super::child::{self, Failure, Step};
use super::profile::{Ids, own_ids};
use super::start::{self, Launched, NAMESPACES, OnlyThread};
use super::{landlock, root, sys};
use crate::doctor::{self, Guard, Report};
use crate::provider::Access;
use crate::supervisor::passing;

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    user_namespace: Option<String>,
    namespaces: Option<String>,
    trial: Trial,
    /// Why the owners of folders below layers cannot be mapped; `None` where they can.
    owners: Option<String>,
    pub(crate) seccomp: bool,
    pub(crate) landlock_abi: u32,
}

/// What the child reports; an error's text where a step failed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Trial {
    root: Option<String>,
    privileges: Option<String>,
    layers: BTreeSet<PathBuf>,
}

/// A trial that takes longer hangs on something, and so would a sandbox.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(10);

impl Findings {
    /// Tries. This process's working folder is a clean one (`profile::clean_folder`).
    pub(crate) fn gather(only: &OnlyThread) -> Self {
        let ids = own_ids().unwrap_or(Ids::Own { uid: 0, gid: 0 });
        let text = |failure: Failure| failure.to_string();
        let user_namespace = attempt(only, libc::CLONE_NEWUSER, ids, |_| {}).err().map(text);
        let tried = attempt(only, NAMESPACES, ids, |sync| try_everything(ids, sync));
        let (namespaces, trial) = match tried {
            Ok(report) => match serde_json::from_str(&report) {
                Ok(trial) => (None, trial),
                Err(_) => (None, Trial::failed("the trial died")),
            },
            Err(failure) => (Some(failure.to_string()), Trial::failed("not tried")),
        };
        Self {
            user_namespace,
            namespaces,
            trial,
            owners: try_owners(only, ids),
            seccomp: sys::filter_can_return_errors(),
            landlock_abi: sys::landlock_abi(),
        }
    }

    /// Whether an overlay can be put over this folder.
    pub(crate) fn takes_layer(&self, folder: &Path) -> bool {
        self.trial.layers.contains(folder)
    }

    /// Whether images and package layers can be shown with owners of the sandbox's own.
    pub(crate) fn maps_owners(&self) -> bool {
        self.owners.is_none()
    }

    /// Why root inside cannot be given what the system's package manager needs; `None` where it can.
    pub(crate) fn lacks_for_packages(&self, groups: &Groups) -> Option<String> {
        if !own_ids().is_ok_and(Ids::are_many) {
            return Some("a sandbox has one user only, and installing needs several".to_owned());
        }
        if !self.takes_layer(Path::new("/usr")) {
            return Some("no overlay over /usr".to_owned());
        }
        if !groups.limits(Controller::Processes) {
            // The other limit counts for each user, and whoever can become others has as many.
            return Some("no control group counts processes".to_owned());
        }
        self.owners.clone()
    }

    /// The report for people and programs.
    pub(crate) fn report(&self, groups: &Groups) -> Report {
        let kernel = "enable it in the kernel, or allow it in the container's security profile";
        let mut guards = vec![
            guard(
                doctor::USER_NAMESPACE,
                true,
                &self.user_namespace,
                "made by trying",
                &how_to_enable_user_namespaces(),
            ),
            guard(
                doctor::NAMESPACES,
                true,
                &self.namespaces,
                "made by trying",
                &how_to_enable_user_namespaces(),
            ),
            guard(
                doctor::PRIVATE_ROOT,
                true,
                &self.trial.root,
                "made by trying",
                "in a container, run it with `--security-opt systempaths=unconfined --security-opt seccomp=unconfined`",
            ),
            guard(
                doctor::NO_NEW_PRIVILEGES,
                true,
                &self.trial.privileges,
                "made by trying; no capability, but for sandboxes that may install packages",
                kernel,
            ),
        ];
        let seccomp = (!self.seccomp).then(|| "the kernel has no seccomp filters".to_owned());
        guards.push(guard(doctor::SECCOMP, false, &seccomp, "seccomp", kernel));
        let abi = format!("Landlock ABI {}", self.landlock_abi);
        let landlock = (self.landlock_abi == 0).then(|| "the kernel has no Landlock".to_owned());
        guards.push(guard(
            doctor::LANDLOCK,
            false,
            &landlock,
            &abi,
            "boot with `lsm=landlock,…`, or use Linux 5.13 or later",
        ));
        let scopes = (self.landlock_abi < landlock::ABI_WITH_SCOPES).then(|| {
            "the kernel's Landlock has no scopes; the pid and network namespaces stand in".to_owned()
        });
        guards.push(guard(doctor::LANDLOCK_SCOPES, false, &scopes, &abi, "use Linux 6.12 or later"));
        let layer = (!self.takes_layer(Path::new("/usr")))
            .then(|| "no overlay over /usr; the host's tools are read-only".to_owned());
        guards.push(guard(
            doctor::WRITABLE_LAYER,
            false,
            &layer,
            "overlay on tmpfs",
            "use Linux 5.11 or later, without mounts below /usr",
        ));

        let counted = |name: &str, controller: Controller, stand_in: &str| {
            let found = groups.describe(controller);
            let missing = found.is_none().then(|| format!("no control group may be used; {stand_in}"));
            guard(name, false, &missing, found.unwrap_or_default(), HOW_TO_ENABLE_GROUPS)
        };
        guards.push(counted(doctor::MEMORY_LIMIT, Controller::Memory, "a watchdog stands in"));
        guards.push(counted(
            doctor::CPU_LIMIT,
            Controller::Cpu,
            "nothing stands in but the calls' time limits",
        ));
        let processes =
            groups.describe(Controller::Processes).unwrap_or("resource limit of the user namespace");
        guards.push(guard(doctor::PROCESS_LIMIT, false, &None, processes, ""));
        guards.push(guard(doctor::DISK_LIMIT, false, &None, "tmpfs size and resource limits", ""));
        let lacks = self.lacks_for_packages(groups);
        let detail = "apt and dpkg work in sandboxes that may install packages, with seven capabilities that end at the sandbox";
        let instead = lacks.map(|why| format!("{why}; pip, npm and cargo work, apt and dpkg do not"));
        let packages = guard(
            doctor::PACKAGES,
            false,
            &instead,
            detail,
            "run the server as root, on Linux 5.19 or later, with control groups",
        );
        Report::from_guards(guards, vec![packages])
    }
}

impl Trial {
    fn failed(why: &str) -> Self {
        Self { root: Some(why.to_owned()), privileges: Some(why.to_owned()), layers: BTreeSet::new() }
    }
}

const HOW_TO_ENABLE_GROUPS: &str = "run as root, or in a delegated control group: `systemd-run --user --scope -p Delegate=yes …`, \
    or a service with `Delegate=yes` and `DelegateSubgroup=server`";

fn guard(name: &str, floor: bool, missing: &Option<String>, detail: &str, how_to_enable: &str) -> Guard {
    Guard {
        name: name.to_owned(),
        holds: missing.is_none(),
        floor,
        detail: missing.clone().unwrap_or_else(|| detail.to_owned()),
        how_to_enable: if missing.is_some() { how_to_enable.to_owned() } else { String::new() },
    }
}

/// Runs `inside` in new namespaces, with ids, and returns what it wrote.
fn attempt(
    only: &OnlyThread,
    namespaces: i32,
    ids: Ids,
    inside: impl FnOnce(UnixStream),
) -> Result<String, Failure> {
    let Launched { pid, process: _process, mut sync } = start::launch(only, namespaces, None, |mut sync| {
        let mut byte = [0];
        if sync.read_exact(&mut byte).is_ok() {
            inside(sync);
        }
    })?;
    start::map_ids(pid, ids, 0)?;
    sync.set_read_timeout(Some(TRIAL_TIME_MAX)).step("set a timeout")?;
    sync.write_all(&[child::GO]).step("let the process go")?;
    let mut report = String::new();
    sync.read_to_string(&mut report).step("read the trial's report")?;
    Ok(report)
}

/// Maps the owners of `/usr` for a namespace, as for a sandbox that may install packages, and looks at them from inside.
fn try_owners(only: &OnlyThread, ids: Ids) -> Option<String> {
    let Ids::Ranges { .. } = ids else {
        return Some("only the host's root can map the owners of files".to_owned());
    };
    let look = |mut sync: UnixStream| {
        let try_it = || -> Result<(), Failure> {
            root::detach_propagation()?;
            let mut trees = VecDeque::new();
            passing::receive(&sync, &mut [0], &mut trees).step("get a folder")?;
            sys::become_namespace_root(ids.groups()).step("become the namespace's root")?;
            root::try_stage()?;
            trees.pop_front().map_or_else(
                || Err(io::Error::other("it did not come")).step("get a folder"),
                |tree| root::try_held(&tree),
            )
        };
        let said = try_it().err().map_or_else(String::new, |failure| failure.to_string());
        let _ = sync.write_all(said.as_bytes());
    };
    let attempt = || -> Result<String, Failure> {
        let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
        let Launched { pid, process: _process, mut sync } = start::launch(only, namespaces, None, look)?;
        start::map_ids(pid, ids, 0)?;
        // What the supervisor itself makes is shown this way too, so its folder must take it as well.
        let namespace = start::user_namespace(pid)?;
        start::hold_mapped(Path::new("."), &namespace, Access::ReadWrite)?;
        let usr = start::hold_mapped(Path::new("/usr"), &namespace, Access::ReadOnly)?;
        sync.set_read_timeout(Some(TRIAL_TIME_MAX)).step("set a timeout")?;
        passing::send(&sync, &[child::LOWER], usr.as_fd()).step("bring a folder")?;
        let mut said = String::new();
        sync.read_to_string(&mut said).step("read the trial's report")?;
        Ok(said)
    };
    match attempt() {
        Ok(said) if said.is_empty() => None,
        Ok(said) => Some(said),
        Err(failure) => Some(failure.to_string()),
    }
}

fn try_everything(ids: Ids, mut sync: UnixStream) {
    let mut layers = BTreeSet::new();
    let mut try_root = || -> Result<(), Failure> {
        root::detach_propagation()?;
        sys::unshare_cgroup_namespace().step("make a control group namespace")?;
        sys::loopback_up().step("bring up the loopback interface")?;
        sys::become_namespace_root(ids.groups()).step("become the namespace's root")?;
        root::try_stage()?;
        for folder in root::program_folders() {
            match root::try_layer(&folder) {
                Ok(()) => drop(layers.insert(folder)),
                Err(_) => root::try_read_only(&folder)?,
            }
        }
        root::try_proc_and_root()
    };
    let root = try_root().err().map(|failure| failure.to_string());
    let privileges = sys::drop_capabilities(0)
        .step("drop capabilities")
        .and_then(|()| sys::no_new_privileges().step("set no_new_privs"))
        .err()
        .map(|failure| failure.to_string());
    let trial = Trial { root, privileges, layers };
    let _ = serde_json::to_writer(&mut sync, &trial);
    let _ = sync.flush();
}

/// What an administrator would change, by what this machine's switches say.
fn how_to_enable_user_namespaces() -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let switches = [
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile that allows `userns`",
        ),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "`sysctl kernel.unprivileged_userns_clone=1`"),
        ("/proc/sys/user/max_user_namespaces", "0", "`sysctl user.max_user_namespaces=10000`"),
    ];
    switches
        .iter()
        .find(|(path, value, _)| is(path, value))
        .map_or("in a container, run it with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined`", |(_, _, how)| how)
        .to_owned()
}
