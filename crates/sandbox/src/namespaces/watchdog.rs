//! Memory of a sandbox, added up from `/proc`, for machines where no control group counts it.
//!
//! A stand-in and no more: it looks a few times a second, so a sandbox can overshoot for a moment, and what can only be
//! found by looking everywhere at once (memory files in flight between processes) escapes it; the system call filter denies System V
//! shared memory where this is in use, for the same reason. `posthouse doctor` calls such a machine "reduced".

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// As many processes as are looked at; more than a sandbox may have.
const PROCESSES_MAX: usize = 10_000;

/// As many descriptors as are looked at in one sandbox, some microseconds each.
const DESCRIPTORS_MAX: usize = 20_000;

/// The memory of the process `first`, its children and theirs, their memory files, and the files that the sandbox has written. Shared
/// pages count for each process at first; if the sum is over `limit`, they are counted once, as far as the kernel tells.
pub(crate) fn memory_bytes(first: i32, limit: u64) -> u64 {
    let family = family(first);
    let files = written(first).saturating_add(memory_files(&family, DESCRIPTORS_MAX));
    let quick: u64 = family.iter().map(|pid| resident(*pid)).sum();
    if files + quick <= limit {
        return files + quick;
    }
    files + family.iter().map(|pid| proportional(*pid).unwrap_or_else(|| resident(*pid))).sum::<u64>()
}

/// What the sandbox's tmpfs holds. Its `/dev` lies in it, whatever the root is; that of a builder lies on the disk, which is
/// no memory.
fn written(first: i32) -> u64 {
    let Ok(found) = rustix::fs::statfs(format!("/proc/{first}/root/dev")) else { return 0 };
    match found.f_type as u64 == TMPFS {
        true => (found.f_blocks - found.f_bfree) * found.f_bsize as u64,
        false => 0,
    }
}

/// The kernel's number for the kind of file system.
const TMPFS: u64 = 0x0102_1994;

/// Memory files that are open somewhere, each once. So many descriptors that looking at them would keep all other sandboxes
/// waiting count as too much memory.
fn memory_files(family: &[i32], looks_max: usize) -> u64 {
    let mut seen = HashSet::new();
    let mut sum = 0;
    let mut looked_at = 0;
    for pid in family {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            looked_at += 1;
            if looked_at > looks_max {
                return u64::MAX / 2;
            }
            let is_one = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
            if let Some(found) = is_one.then(|| fs::metadata(entry.path()).ok()).flatten()
                && seen.insert(found.ino())
            {
                sum += found.blocks() * 512;
            }
        }
    }
    sum
}

/// A process and all below it. Process 1 of the namespace adopts orphans, so nobody gets away.
fn family(first: i32) -> Vec<i32> {
    let mut family = vec![first];
    let mut next = 0;
    while next < family.len() && family.len() < PROCESSES_MAX {
        let tasks = fs::read_dir(format!("/proc/{}/task", family[next]));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        next += 1;
    }
    family
}

/// Private memory, shared memory and page tables, in bytes.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&status, &["RssAnon:", "RssShmem:", "VmPTE:", "VmSwap:"])
}

/// The same with shared pages divided among those who share them; `None` where the kernel does not say.
fn proportional(pid: i32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Some(kilobytes(&rollup, &["Pss_Anon:", "Pss_Shmem:", "SwapPss:"]) + kilobytes(&status, &["VmPTE:"]))
}

fn kilobytes(text: &str, names: &[&str]) -> u64 {
    let value = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let wanted = |line: &&str| names.iter().any(|name| line.starts_with(name));
    text.lines().filter(wanted).filter_map(value).sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_added_up() {
        let status = "Name:\tx\nVmPTE:\t      10 kB\nRssAnon:\t     100 kB\nRssFile:\t    1000 kB\nRssShmem:\t       1 kB\n";
        assert_eq!(kilobytes(status, &["RssAnon:", "RssShmem:", "VmPTE:"]), 111 << 10);
    }

    #[test]
    fn more_descriptors_than_can_be_looked_at_are_too_much() {
        let own = [i32::try_from(std::process::id()).unwrap()];
        assert_eq!(memory_files(&own, DESCRIPTORS_MAX), 0);
        assert!(memory_files(&own, 2) > 1 << 60);
    }

    #[test]
    fn a_process_that_is_gone_uses_nothing() {
        assert_eq!(memory_bytes(i32::MAX, 0), 0);
    }
}
