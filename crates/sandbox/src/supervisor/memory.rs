//! How much memory is free for sandboxes: the machine's, and less where a control group around the supervisor has less
//! left.

use std::fs;
use std::path::{Path, PathBuf};

/// Groups above a process that are looked at. Nobody nests deeper.
const GROUPS_MAX: usize = 32;

/// Where to look. Found once; looking reads a file for the machine and three for each group with a limit.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    groups: Vec<Files>,
}

#[derive(Debug)]
struct Files {
    limit: PathBuf,
    usage: PathBuf,
    stat: PathBuf,
    /// The line of `stat` that says what the kernel can take back at once.
    inactive: &'static str,
}

impl Memory {
    /// Finds the groups with a limit among this one and those above it.
    pub(crate) fn find(own: &[PathBuf]) -> Self {
        let mut groups = Vec::new();
        for folder in own.iter().flat_map(|own| own.ancestors().take(GROUPS_MAX)) {
            let file = |name: &str| folder.join(name);
            let found = [
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ];
            groups.extend(found.into_iter().filter(|(limit, ..)| file(limit).exists()).map(
                |(limit, usage, inactive)| Files {
                    limit: file(limit),
                    usage: file(usage),
                    stat: file("memory.stat"),
                    inactive,
                },
            ));
        }
        // A limit can be set later, but most groups never get one, and version 1 writes "none" as a number.
        groups.retain(|files| number(&files.limit).is_some_and(|limit| limit < 1 << 60));
        Self { groups }
    }

    /// What is free now; `None` where nobody says.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| line(&text, "MemAvailable:"));
        let groups = self.groups.iter().filter_map(Files::free_bytes);
        machine.map(|kib| kib << 10).into_iter().chain(groups).min()
    }
}

impl Files {
    fn free_bytes(&self) -> Option<u64> {
        let inactive =
            fs::read_to_string(&self.stat).ok().and_then(|text| line(&text, self.inactive)).unwrap_or(0);
        let used = number(&self.usage)?.saturating_sub(inactive);
        Some(number(&self.limit)?.saturating_sub(used))
    }
}

/// A file that is a number; `None` for "max", too.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind a name at the beginning of a line.
fn line(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut words| if words.next()? == name { words.next()?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts_and_what_can_be_taken_back_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("a/b");
        fs::create_dir_all(&own).unwrap();
        let write = |folder: &Path, name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write(&own, "memory.max", "max\n");
        let above = dir.path().join("a");
        write(&above, "memory.max", "1000\n");
        write(&above, "memory.current", "700\n");
        write(&above, "memory.stat", "anon 1\ninactive_file 200\n");
        let memory = Memory::find(&[own]);
        assert_eq!(memory.groups.len(), 1, "{memory:?}");
        assert_eq!(memory.free_bytes(), Some(500));
        write(&above, "memory.current", "5000\n");
        assert_eq!(memory.free_bytes(), Some(0));
    }

    #[test]
    fn the_machine_says_what_is_free() {
        assert_eq!(line("MemTotal: 9 kB\nMemAvailable:   7 kB\n", "MemAvailable:"), Some(7));
        assert!(Memory::default().free_bytes().is_some_and(|free| free > 0));
    }
}
