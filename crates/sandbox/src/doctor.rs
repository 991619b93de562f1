//! What this machine allows, guard by guard, for people and for programs.
//!
//! The report is made once by trying (`namespaces::probe`), never by guessing from version numbers. It refuses to
//! round up: a guard that a stand-in replaces does not hold, and a machine below the floor gets no sandbox at all.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the machine allows as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every guard holds.
    Full,
    /// The floor holds (namespaces, a system call or file filter, no new privileges), some other guard does not.
    Reduced,
    /// The floor does not hold: no sandbox is made.
    Unavailable,
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
            Self::Unavailable => "unavailable",
        })
    }
}

/// One guard of the sandbox on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Its name, stable across versions.
    pub name: String,
    /// Whether it holds here.
    pub holds: bool,
    /// Whether no sandbox is made without it.
    pub floor: bool,
    /// How it holds, or why not and what stands in.
    pub detail: String,
    /// What the operator can do; empty where it holds.
    pub how_to_enable: String,
}

/// Every guard, and what they amount to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sum.
    pub level: Level,
    /// The parts, the floor first.
    pub guards: Vec<Guard>,
    /// What sandboxes can do here that is no matter of safety, in the same form.
    #[serde(default)]
    pub abilities: Vec<Guard>,
}

impl Report {
    pub(crate) fn from_guards(guards: Vec<Guard>, abilities: Vec<Guard>) -> Self {
        // One filter is enough for the floor: either of the two stops what namespaces leave open, worse than both do.
        let holds = |name: &str| guards.iter().any(|guard| guard.name == name && guard.holds);
        let filtered = holds(SECCOMP) || holds(LANDLOCK);
        let floor = guards.iter().all(|guard| guard.holds || !guard.floor) && filtered;
        let level = match (floor, guards.iter().all(|guard| guard.holds)) {
            (true, true) => Level::Full,
            (true, false) => Level::Reduced,
            (false, _) => Level::Unavailable,
        };
        Self { level, guards, abilities }
    }

    /// The guard of that name.
    #[must_use]
    pub fn guard(&self, name: &str) -> Option<&Guard> {
        self.guards.iter().find(|guard| guard.name == name)
    }

    /// Takes an ability back, which turned out not to be there.
    pub(crate) fn lose(&mut self, name: &str, why: &str) {
        for ability in self.abilities.iter_mut().filter(|ability| ability.name == name) {
            ability.holds = false;
            why.clone_into(&mut ability.detail);
        }
    }

    /// Whether sandboxes have the ability of that name.
    #[must_use]
    pub fn can(&self, name: &str) -> bool {
        self.abilities.iter().any(|ability| ability.name == name && ability.holds)
    }

    /// Whether the guard of that name holds.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        self.guard(name).is_some_and(|guard| guard.holds)
    }

    /// Why no sandbox can be made, naming each guard that is missing and what to do; `None` where the floor holds.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        if self.level != Level::Unavailable {
            return None;
        }
        let missing: Vec<String> = self
            .guards
            .iter()
            .filter(|guard| !guard.holds && (guard.floor || guard.name == SECCOMP || guard.name == LANDLOCK))
            .map(|guard| format!("{} ({}; {})", guard.name, guard.detail, guard.how_to_enable))
            .collect();
        Some(format!("this machine does not allow a guarded sandbox: {}", missing.join("; ")))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "sandbox: {}", self.level)?;
        let all = || self.guards.iter().chain(&self.abilities);
        let width = all().map(|guard| guard.name.len()).max().unwrap_or(0);
        for Guard { name, holds, floor: _, detail, how_to_enable } in all() {
            let mark = if *holds { "yes" } else { "no " };
            writeln!(formatter, "  {name:width$}  {mark}  {detail}")?;
            if !holds && !how_to_enable.is_empty() {
                writeln!(formatter, "  {:width$}       to enable: {how_to_enable}", "")?;
            }
        }
        Ok(())
    }
}

/// Guard: a user namespace of its own.
pub const USER_NAMESPACE: &str = "user namespace";
/// Guard: pid, mount, net, ipc, uts and cgroup namespaces.
pub const NAMESPACES: &str = "pid, mount, net, ipc, uts, cgroup namespaces";
/// Guard: a root of its own, with a private `/proc`.
pub const PRIVATE_ROOT: &str = "private root and /proc";
/// Guard: `no_new_privs` and an empty capability set; in sandboxes that may install packages, a small one.
pub const NO_NEW_PRIVILEGES: &str = "no new privileges, few or no capabilities";
/// Ability: the system's package manager works.
pub const PACKAGES: &str = "system packages can be installed";
/// Guard: the seccomp filter.
pub const SECCOMP: &str = "system call filter";
/// Guard: the Landlock rules.
pub const LANDLOCK: &str = "file filter";
/// Guard: Landlock's scopes for signals and abstract sockets.
pub const LANDLOCK_SCOPES: &str = "signal and abstract socket scopes";
/// Guard: the host's tools with a private writable layer.
pub const WRITABLE_LAYER: &str = "writable layer over the host's tools";
/// Guard: memory limited by a control group.
pub const MEMORY_LIMIT: &str = "memory limit";
/// Guard: the number of processes limited.
pub const PROCESS_LIMIT: &str = "process limit";
/// Guard: processor time limited by a control group.
pub const CPU_LIMIT: &str = "cpu limit";
/// Guard: disk, file size and open files.
pub const DISK_LIMIT: &str = "disk, file size and open file limits";
/// Guard: everything in a sandbox dies at once.
pub const ATOMIC_KILL: &str = "kill at once";
