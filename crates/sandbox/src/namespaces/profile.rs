//! What is the same for every sandbox of one supervisor: prepared once, so that making one costs little.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::cgroups::{Controller, Groups};
use super::probe::Findings;
use super::root::Layout;
use super::{agent, etc, root, seccomp, sys};

/// How to make a sandbox on this machine.
pub(crate) struct Profile {
    /// The sealed `tools` program.
    pub(crate) agent: OwnedFd,
    pub(crate) layout: Layout,
    pub(crate) ids: Ids,
    pub(crate) owners: Owners,
    /// Whether root inside can be given what package managers need.
    pub(crate) installs: bool,
    pub(crate) groups: Groups,
    /// The compiled system call filter; `None` where the kernel has none.
    pub(crate) filter: Option<Vec<libc::sock_filter>>,
    /// 0 where the kernel has no Landlock.
    pub(crate) landlock_abi: u32,
    pub(crate) guards: Guards,
}

/// Which host ids a sandbox's ids stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Root inside is the ordinary user who runs the supervisor.
    Own {
        /// That user.
        uid: u32,
        /// And the group.
        gid: u32,
    },
    /// Each sandbox gets a range of ids that nobody on the host has.
    Ranges {
        /// Where the first range starts.
        first: u32,
        /// Ids in one range.
        length: u32,
        /// How many ranges there are.
        count: u32,
    },
    /// Root inside is root outside. Exists to show, in this crate's tests, what goes wrong then.
    #[cfg_attr(not(test), expect(dead_code, reason = "never made outside of tests"))]
    HostRoot,
}

/// How a sandbox sees the owners of files that others have put below its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    /// As its own: 0 is its root, and so on.
    Mapped,
    /// As the kernel sees them. An ordinary user's own files are root's inside; whatever belongs to others, nobody's.
    AsTheyAre,
}

/// Where the ranges start: above what people, services and other container tools use, below what is reserved.
const RANGES_FIRST: u32 = 0x7000_0000;
const RANGE_LENGTH: u32 = 0x1_0000;
const RANGES_COUNT: u32 = 0x1000;

impl Ids {
    /// Chooses by who we are and which ids this process's own user namespace has.
    pub(crate) fn choose(uid: u32, gid: u32, own_map: &str) -> Self {
        if uid != 0 {
            return Self::Own { uid, gid };
        }
        let mapped: Vec<(u64, u64)> = own_map
            .lines()
            .filter_map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse::<u64>);
                let (first, _outside, length) =
                    (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
                Some((first, first + length))
            })
            .collect();
        let holds = |first: u64, end: u64| mapped.iter().any(|(from, to)| *from <= first && end <= *to);
        let wanted_end = u64::from(RANGES_FIRST) + u64::from(RANGE_LENGTH) * u64::from(RANGES_COUNT);
        if holds(u64::from(RANGES_FIRST), wanted_end) {
            return Self::Ranges { first: RANGES_FIRST, length: RANGE_LENGTH, count: RANGES_COUNT };
        }
        // Inside a container only some ids exist: take single ones from the top of the largest stretch, never 0.
        let Some((from, to)) = mapped.iter().max_by_key(|(from, to)| to - from) else {
            return Self::Own { uid, gid };
        };
        let count = (to - from).saturating_sub(1).min(u64::from(RANGES_COUNT));
        if count == 0 {
            // A namespace with one id: its root is some ordinary user outside.
            return Self::Own { uid, gid };
        }
        let first = u32::try_from(to - count).unwrap_or(u32::MAX - RANGES_COUNT);
        Self::Ranges { first, length: 1, count: u32::try_from(count).expect("at most RANGES_COUNT") }
    }

    /// What can be done about the supplementary groups of the process that becomes root inside.
    pub(crate) fn groups(self) -> sys::ClearGroups {
        match self {
            Self::Own { .. } => sys::ClearGroups::DeniedForThisNamespace,
            Self::Ranges { .. } | Self::HostRoot => sys::ClearGroups::Yes,
        }
    }

    /// Whether a sandbox's ids are nobody's on the host.
    pub(crate) fn are_ranges(self) -> bool {
        matches!(self, Self::Ranges { .. })
    }

    /// Whether there are ids enough for other users than root.
    pub(crate) fn are_many(self) -> bool {
        matches!(self, Self::Ranges { length: RANGE_LENGTH, .. })
    }

    /// How many sandboxes can have ids of their own at once.
    pub(crate) fn slots(self) -> u32 {
        match self {
            Self::Own { .. } | Self::HostRoot => u32::MAX,
            Self::Ranges { count, .. } => count,
        }
    }
}

/// Which guards are applied. The product always applies all of them; this crate's own tests leave one out to show
/// that it matters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guards {
    pub(crate) filter: bool,
    pub(crate) landlock: bool,
    pub(crate) network: bool,
    pub(crate) capabilities: bool,
    pub(crate) nesting: bool,
    pub(crate) processes: bool,
}

impl Guards {
    /// All of them.
    pub(crate) const ALL: Self = Self {
        filter: true,
        landlock: true,
        network: true,
        capabilities: true,
        nesting: true,
        processes: true,
    };
}

impl Profile {
    /// Prepares everything by what the probe found. This process's working folder is a clean one ([`clean_folder`]).
    pub(crate) fn prepare(findings: &Findings, groups: Groups) -> io::Result<Self> {
        let memory = match groups.limits(Controller::Memory) {
            true => seccomp::Memory::Counted,
            false => seccomp::Memory::Watched,
        };
        etc::curate(Path::new("/etc"), Path::new(root::ETC))?;
        Ok(Self {
            agent: agent::tools()?,
            layout: Layout::of_host(|path| findings.takes_layer(path)),
            ids: own_ids()?,
            owners: if findings.maps_owners() { Owners::Mapped } else { Owners::AsTheyAre },
            installs: findings.lacks_for_packages(&groups).is_none(),
            groups,
            filter: findings.seccomp.then(|| seccomp::program(memory)),
            landlock_abi: findings.landlock_abi,
            guards: Guards::ALL,
        })
    }
}

/// Makes the working folder anew, with an empty place for the stage.
pub(crate) fn clean_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Open to all, below a folder that is open to us alone: a sandbox's ids are not ours while it builds its root.
    fs::DirBuilder::new().mode(0o755).create(folder)?;
    fs::DirBuilder::new().mode(0o755).create(folder.join(root::STAGE))
}

pub(crate) fn own_ids() -> io::Result<Ids> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Ok(Ids::choose(uid.as_raw(), gid.as_raw(), &fs::read_to_string("/proc/self/uid_map")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_ranges_that_nobody_has_and_never_the_hosts_root() {
        let whole = Ids::choose(0, 0, "         0          0 4294967295\n");
        assert_eq!(whole, Ids::Ranges { first: RANGES_FIRST, length: RANGE_LENGTH, count: RANGES_COUNT });
        let container = Ids::choose(0, 0, "0 100000 65536\n");
        assert_eq!(container, Ids::Ranges { first: 65536 - 4096, length: 1, count: 4096 });
        assert_eq!(Ids::choose(0, 0, "0 1000 1"), Ids::Own { uid: 0, gid: 0 });
        assert_eq!(Ids::choose(1000, 100, "0 0 4294967295"), Ids::Own { uid: 1000, gid: 100 });
    }
}
