//! What was measured on: enough to compare two runs, nothing that names the machine.

use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The facts that figures depend on.
#[derive(Debug)]
pub(super) struct Machine {
    cores: usize,
    cpu: String,
    memory_gib: u64,
    kernel: String,
    /// The kind of file system that was worked on.
    file_system: String,
    /// Processes that wanted a core in the last minute, on average, before the run: neighbours.
    load: String,
}

impl Machine {
    /// Looks at this machine, and at the file system of the folder.
    pub(super) fn look(dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory_kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse().ok())
            .unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            memory_gib: memory_kib.div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&read("/proc/self/mountinfo"), dir)
                .unwrap_or_else(|| "unknown".to_owned()),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    /// Whether what is synced there lasts at all.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }

    pub(super) fn to_json(&self) -> Value {
        let Self { cores, cpu, memory_gib, kernel, file_system, load } = self;
        json!({
            "cores": cores, "cpu": cpu, "memory_gib": memory_gib, "kernel": kernel, "file_system": file_system,
            "load_before": load.parse::<f64>().ok(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, memory_gib, kernel, file_system, load } = self;
        write!(
            formatter,
            "{cores} cores, {cpu}, {memory_gib} GiB, Linux {kernel}, {file_system}, load before {load}"
        )
    }
}

/// The kind of the file system that holds `dir`: that of the longest mount point above it.
fn file_system(mountinfo: &str, dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        Some((mount.split(' ').nth(4)?, file_system.split(' ').next()?))
    });
    // Of two mounts on the same point the later one is seen.
    let above = mounts.filter(|(point, _)| dir.starts_with(point)).max_by_key(|(point, _)| point.len());
    above.map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /proc rw shared:2 - proc proc rw\n";
        assert_eq!(file_system(mounts, Path::new("/proc/self")).as_deref(), Some("proc"));
        assert_eq!(file_system(mounts, Path::new("/")).as_deref(), Some("ext4"));
    }
}
