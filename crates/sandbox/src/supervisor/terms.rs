//! What a sandbox can be asked to be.

use crate::namespaces::root;
use crate::provider::{Error, Limits, Resources, Rights};

/// The least memory in which `tools` and a shell can start.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
const PROCESSES_MIN: u64 = 8;
/// Lower bound on the other figures: enough to start at all.
const DISK_BYTES_MIN: u64 = 1 << 20;
const OPEN_FILES_MIN: u64 = 64;
const CPU_PERCENT_MIN: u32 = 1;

/// Refuses what cannot work, and makes the figures agree with each other.
pub(crate) fn checked(mut resources: Resources) -> Result<Resources, Error> {
    let Limits { memory_bytes, processes, file_size_bytes: _, open_files, disk_bytes, cpu_percent } =
        resources.limits;
    let name = &resources.hostname;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let rules = [
        (memory_bytes >= MEMORY_BYTES_MIN, "the memory limit is below 16 MiB"),
        (processes >= PROCESSES_MIN, "the process limit is below 8"),
        (open_files >= OPEN_FILES_MIN, "the open file limit is below 64"),
        (disk_bytes >= DISK_BYTES_MIN, "the disk limit is below 1 MiB"),
        (cpu_percent >= CPU_PERCENT_MIN, "the cpu limit is 0"),
        (!name.is_empty() && name.len() <= 63 && name.bytes().all(plain), "the host name is not a plain one"),
    ];
    if let Some((_, broken)) = rules.iter().find(|(kept, _)| !kept) {
        return Err(Error::refused(*broken));
    }
    for mount in &resources.mounts {
        root::check(mount).map_err(|error| Error::refused(error.to_string()))?;
    }
    // Files live in memory. A full disk must be an error of a write, not the death of whoever asks for memory next.
    resources.limits.disk_bytes = disk_bytes.min(memory_bytes / 4 * 3);
    if !resources.base.packages.is_empty() {
        resources.rights = Rights::Install;
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_work_are_refused_by_name() {
        let limits = Limits { memory_bytes: 1, ..Limits::default() };
        let refused = checked(Resources { limits, ..Resources::default() }).unwrap_err();
        assert_eq!(refused.to_string(), "refused: the memory limit is below 16 MiB");
        let small = Limits { memory_bytes: 64 << 20, ..Limits::default() };
        let resources = checked(Resources { limits: small, ..Resources::default() }).unwrap();
        assert_eq!(resources.limits.disk_bytes, 48 << 20);
    }
}
