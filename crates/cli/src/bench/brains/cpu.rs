//! Processor time of processes, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::member::READING;

/// The threads of the embedded store, besides those that read.
const STORE_THREADS: [&str; 2] = ["writer", "checkpoint"];
/// Fields of a `stat` file, counted from the state, which stands behind the name.
const PARENT: usize = 1;
const USER: usize = 11;
const SYSTEM: usize = 12;
const DEAD_CHILDREN_USER: usize = 13;
const DEAD_CHILDREN_SYSTEM: usize = 14;

/// The processor time of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// All of it.
    pub(super) all: Duration,
    /// That of the embedded store's threads.
    pub(super) store: Duration,
}

/// What a process of ours has spent so far.
pub(super) fn of_process(pid: u32) -> Option<Spent> {
    let all = time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, &[USER, SYSTEM])?;
    let mut store = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let thread = thread.ok()?.path();
        // A thread may end while it is looked at.
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let name = name.trim();
        if name == READING || STORE_THREADS.contains(&name) {
            let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
            store += time(&stat, &[USER, SYSTEM]).unwrap_or_default();
        }
    }
    Some(Spent { all, store })
}

/// What this process has spent so far.
pub(super) fn of_this_process() -> Option<Duration> {
    Some(of_process(std::process::id())?.all)
}

/// The processes of the PostgreSQL server that holds a database, if it runs on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Postgres {
    /// The process that starts all others.
    main: u32,
}

impl Postgres {
    /// Finds the server by a process of its that serves a connection to this database now: such a process says in its
    /// title what it serves.
    pub(super) fn with_connection_to(database: &str) -> Option<Self> {
        let serving = processes().find(|pid| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let title = String::from_utf8_lossy(&title).into_owned();
            let mut words = title.trim_end_matches('\0').split(' ');
            words.next() == Some("postgres:") && words.any(|word| word == database)
        })?;
        Some(Self { main: parent(&fs::read_to_string(format!("/proc/{serving}/stat")).ok()?)? })
    }

    /// What its processes have spent so far, those that have ended included.
    pub(super) fn spent(self) -> Option<Duration> {
        let main = fs::read_to_string(format!("/proc/{}/stat", self.main)).ok()?;
        let mut spent = time(&main, &[USER, SYSTEM, DEAD_CHILDREN_USER, DEAD_CHILDREN_SYSTEM])?;
        for pid in processes() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if parent(&stat) == Some(self.main) {
                spent += time(&stat, &[USER, SYSTEM]).unwrap_or_default();
            }
        }
        Some(spent)
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The fields behind the name, which may hold anything, brackets and spaces included.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace().collect())
}

fn parent(stat: &str) -> Option<u32> {
    fields(stat)?.get(PARENT)?.parse().ok()
}

fn time(stat: &str, wanted: &[usize]) -> Option<Duration> {
    let fields = fields(stat)?;
    let mut ticks = 0;
    for index in wanted {
        ticks += fields.get(*index)?.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_stand_behind_a_name_that_may_hold_anything() {
        let stat = "7 (a) b (c)) S 3 7 7 0 -1 4194304 1 2 3 4 250 150 30 20 20 0 1 0 9";
        assert_eq!(parent(stat), Some(3));
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(
            time(stat, &[USER, SYSTEM]),
            Some(Duration::from_secs(400) / u32::try_from(ticks).expect("small"))
        );
        assert_eq!(time("", &[USER]), None);
    }

    #[test]
    fn a_process_sees_its_own_time() {
        assert!(of_this_process().is_some());
    }
}
