//! Looks for secrets wherever they must not be: in a live sandbox, and in all that a server keeps, writes and says.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Of one mapping of a process: more is not needed for a shell and its children.
const MAPPING_BYTES_MAX: u64 = 64 << 20;
/// Of one file.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A secret in the forms in which it could stand somewhere.
pub(crate) struct Needle {
    pub(crate) name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Needle {
    pub(crate) fn new(name: &str, secret: &str) -> Self {
        let mut forms = vec![("plain", secret.as_bytes().to_vec())];
        // Base64 of something around it shows one of three forms, of which the ends depend on the neighbours.
        for shift in 0..3 {
            let shifted = [&b"xx"[..shift], secret.as_bytes()].concat();
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let coded = engine.encode(&shifted);
                let whole = coded.len() - 4;
                forms.push(("base64", coded.as_bytes()[if shift == 0 { 0 } else { 4 }..whole].to_vec()));
            }
        }
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        forms.push(("hex", hex.to_ascii_uppercase().into_bytes()));
        forms.push(("hex", hex.into_bytes()));
        let url: String = secret
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect();
        forms.push(("url", url.into_bytes()));
        forms.push(("backwards", secret.bytes().rev().collect()));
        Self { name: name.to_owned(), forms }
    }
}

/// What was found so far, as "place: secret (form)".
pub(crate) struct Hunt<'a> {
    needles: &'a [Needle],
    pub(crate) found: BTreeSet<String>,
    /// How much was looked through, so that a hunt in an empty wood is seen to be one.
    pub(crate) bytes: u64,
}

impl<'a> Hunt<'a> {
    pub(crate) fn new(needles: &'a [Needle]) -> Self {
        Self { needles, found: BTreeSet::new(), bytes: 0 }
    }

    /// Looks through bytes that were found at a place.
    pub(crate) fn bytes(&mut self, place: &str, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for Needle { name, forms } in self.needles {
            for (form, needle) in forms {
                if memchr::memmem::find(bytes, needle).is_some() {
                    self.found.insert(format!("{place}: {name} ({form})"));
                }
            }
        }
    }

    /// Looks through all files below a folder, and at their names. Snapshots are unpacked.
    pub(crate) fn files(&mut self, place: &str, folder: &Path) {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                self.bytes(place, path.as_os_str().as_encoded_bytes());
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    let to = fs::read_link(&path).unwrap_or_default();
                    self.bytes(place, to.as_os_str().as_encoded_bytes());
                } else if kind.is_file() {
                    self.file(place, &path);
                }
            }
        }
    }

    pub(crate) fn file(&mut self, place: &str, path: &Path) {
        let mut bytes = Vec::new();
        let Ok(file) = fs::File::open(path) else { return };
        if file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).is_err() {
            return;
        }
        self.bytes(place, &bytes);
        if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut unpacked = Vec::new();
            if let Ok(decoder) = zstd::Decoder::new(&bytes[..]) {
                // What follows the frame is the archive's own trailer.
                let _ = decoder.single_frame().take(FILE_BYTES_MAX).read_to_end(&mut unpacked);
            }
            self.bytes(&format!("{place} (unpacked)"), &unpacked);
        }
    }

    /// Looks through a process: arguments, environment, and the memory that it may read.
    pub(crate) fn process(&mut self, place: &str, pid: u32) {
        for part in ["cmdline", "environ"] {
            self.bytes(
                &format!("{place} {part}"),
                &fs::read(format!("/proc/{pid}/{part}")).unwrap_or_default(),
            );
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let Ok(mut memory) = fs::File::open(format!("/proc/{pid}/mem")) else { return };
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
            // What is only mapped from a program's file is nobody's secret; and some mappings cannot be read.
            let is_program = !rights.contains('w') && line.contains(" /");
            if !rights.starts_with('r')
                || is_program
                || line.ends_with("[vvar]")
                || line.ends_with("[vsyscall]")
            {
                continue;
            }
            let Some((from, to)) = range.split_once('-') else { continue };
            let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else {
                continue;
            };
            let mut bytes = Vec::new();
            if memory.seek(SeekFrom::Start(from)).is_ok() {
                let _ = (&mut memory).take((to - from).min(MAPPING_BYTES_MAX)).read_to_end(&mut bytes);
            }
            self.bytes(&format!("{place} memory"), &bytes);
        }
    }
}

/// The processes of the sandboxes of a data directory: what descends from its supervisor.
pub(crate) fn sandboxed(data: &Path) -> Vec<u32> {
    let all: Vec<(u32, u32, Vec<u8>)> = fs::read_dir("/proc")
        .expect("there is a /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
            Some((pid, parent, fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()))
        })
        .collect();
    let data = data.as_os_str().as_encoded_bytes();
    let is_supervisor = |line: &[u8]| {
        memchr::memmem::find(line, data).is_some() && memchr::memmem::find(line, b"supervisor").is_some()
    };
    let mut family: Vec<u32> =
        all.iter().filter(|(_, _, line)| is_supervisor(line)).map(|(pid, _, _)| *pid).collect();
    let supervisors = family.len();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|(_, above, _)| *above == parent).map(|(pid, _, _)| *pid));
        next += 1;
    }
    family.split_off(supervisors)
}

/// Where a process finds what was written in its sandbox. What else it may have written is in a snapshot.
pub(crate) fn own_folders(pid: u32) -> Vec<PathBuf> {
    ["etc", "home", "mnt", "root", "run", "tmp", "workspace", "dev/shm"]
        .map(|name| PathBuf::from(format!("/proc/{pid}/root/{name}")))
        .into()
}
