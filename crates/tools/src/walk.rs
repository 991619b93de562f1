//! What lies below a directory, in the order of names, within bounds.
//!
//! Every directory is opened through its root, so a directory that becomes a link under way leads
//! nowhere. No descriptor is kept while the caller looks at an entry; a tree of any depth costs one.
//! The rules of what ripgrep leaves out are ripgrep's own, but their files are read here: they are files
//! like any other, and may be a FIFO, a link to a device, or very large.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{AtFlags, Dir, FileType};

use crate::confine::Place;

/// As much as is read of a file of rules. Real ones have a few KiB, and each line costs its automaton.
const RULES_BYTES_MAX: u64 = 64 << 10;

/// A pattern longer than this, or with more braces, is no pattern. The compiler of patterns recurses into braces;
/// one from a repository's ignore file must not end the process.
const PATTERN_BYTES_MAX: usize = 4096;
const PATTERN_BRACES_MAX: usize = 32;

/// What a walk leaves out.
#[derive(Clone, Copy)]
pub enum LeaveOut<'a> {
    /// Nothing but what is below directories of these names.
    Below(&'a [&'a str]),
    /// What ripgrep leaves out: hidden files and what the ignore files name.
    LikeRipgrep,
}

/// A walk in progress.
pub struct Walk<'a> {
    start: &'a Place,
    leave_out: LeaveOut<'a>,
    entries_left: usize,
    is_cut: bool,
    levels: Vec<Level>,
    /// The rules of the directories from the root down to the one of the last level.
    rules: Vec<Rules>,
}

/// One thing that lies below.
pub struct Found {
    /// Relative to the start.
    pub relative: PathBuf,
    /// What it is. A symlink is a symlink.
    pub kind: FileType,
}

/// A directory whose entries are being returned.
struct Level {
    relative: PathBuf,
    entries: vec::IntoIter<(OsString, FileType)>,
}

/// The rules that one directory holds.
#[derive(Default)]
struct Rules {
    /// `.ignore` and `.rgignore`.
    own: Option<Gitignore>,
    /// `.gitignore`.
    git: Option<Gitignore>,
    /// `.git/info/exclude`.
    exclude: Option<Gitignore>,
    is_repository: bool,
}

impl<'a> Walk<'a> {
    /// Everything below `start`, but no more than so many entries looked at.
    pub fn new(start: &'a Place, leave_out: LeaveOut<'a>, entries_max: usize) -> Walk<'a> {
        let mut walk = Walk {
            start,
            leave_out,
            entries_left: entries_max,
            is_cut: false,
            levels: Vec::new(),
            rules: Vec::new(),
        };
        if matches!(leave_out, LeaveOut::LikeRipgrep) {
            walk.rules.extend(start.parents().map(|parent| Rules::of(&parent, None)));
        }
        walk.enter(PathBuf::new());
        walk
    }

    /// Whether the bound of entries has left something out.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Reads a directory and makes it the last level. One that cannot be read has no entries.
    fn enter(&mut self, relative: PathBuf) {
        let place = self.start.below(&relative);
        let mut entries = Vec::new();
        if let Ok(directory) = place.open_directory().and_then(|directory| Ok(Dir::new(directory)?)) {
            self.list(directory, &mut entries);
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if matches!(self.leave_out, LeaveOut::LikeRipgrep) {
            self.rules.push(Rules::of(&place, Some(&entries)));
        }
        self.levels.push(Level { relative, entries: entries.into_iter() });
    }

    fn list(&mut self, mut directory: Dir, entries: &mut Vec<(OsString, FileType)>) {
        while let Some(Ok(entry)) = directory.read() {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if self.entries_left == 0 {
                self.is_cut = true;
                return;
            }
            self.entries_left -= 1;
            let mut kind = entry.file_type();
            if kind == FileType::Unknown
                && let Ok(at) = directory.fd()
                && let Ok(stat) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
            {
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            entries.push((name.to_owned(), kind));
        }
    }

    fn is_left_out(&self, relative: &Path, name: &OsStr, is_directory: bool) -> bool {
        match self.leave_out {
            LeaveOut::Below(names) => is_directory && names.iter().any(|left_out| name == *left_out),
            LeaveOut::LikeRipgrep => {
                let path = self.start.path().join(relative);
                match verdict(&self.rules, &path, is_directory) {
                    Match::Ignore(()) => true,
                    Match::Whitelist(()) => false,
                    Match::None => name.as_bytes().starts_with(b"."),
                }
            }
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let level = self.levels.last_mut()?;
            let Some((name, kind)) = level.entries.next() else {
                self.levels.pop();
                self.rules.pop();
                continue;
            };
            let relative = level.relative.join(&name);
            if self.is_left_out(&relative, &name, kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                self.enter(relative.clone());
            }
            return Some(Found { relative, kind });
        }
    }
}

/// What the rules say to a path: those of a deeper directory before those above it, `.ignore` before
/// git's, and of git's none from beyond the repository.
fn verdict(rules: &[Rules], path: &Path, is_directory: bool) -> Match<()> {
    let says = |rules: &Option<Gitignore>| {
        rules.as_ref().map_or(Match::None, |rules| rules.matched(path, is_directory).map(drop))
    };
    let own = rules.iter().rev().map(|rules| says(&rules.own)).find(|says| !says.is_none());
    let repository = rules.iter().rposition(|rules| rules.is_repository);
    let within = repository.map_or(&[][..], |at| &rules[at..]);
    let git = within.iter().rev().map(|rules| says(&rules.git)).find(|says| !says.is_none());
    let exclude = within.first().map(|rules| says(&rules.exclude));
    own.or(git).or(exclude).unwrap_or(Match::None)
}

impl Rules {
    /// The rules in a directory; its entries, if they are known, tell which files to look for.
    fn of(directory: &Place, entries: Option<&[(OsString, FileType)]>) -> Rules {
        let has = |name: &str| {
            entries.is_none_or(|entries| {
                entries.binary_search_by(|(entry, _)| entry.as_os_str().cmp(name.as_ref())).is_ok()
            })
        };
        let read = |names: &[&str]| {
            let names = names.iter().filter(|name| has(name.split('/').next().unwrap_or(name)));
            parse(directory, names.copied())
        };
        Rules {
            own: read(&[".ignore", ".rgignore"]),
            git: read(&[".gitignore"]),
            exclude: read(&[".git/info/exclude"]),
            is_repository: has(".git") && directory.below(Path::new(".git")).stat().is_ok(),
        }
    }
}

/// The rules in files of one directory; later files win. `None` when there are none.
fn parse<'n>(directory: &Place, names: impl Iterator<Item = &'n str>) -> Option<Gitignore> {
    let mut rules = GitignoreBuilder::new(directory.path());
    let mut is_empty = true;
    for name in names {
        let Ok(bytes) = directory.below(Path::new(name)).open().and_then(|file| file.read(RULES_BYTES_MAX))
        else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes);
        for line in text.trim_start_matches('\u{feff}').lines() {
            if is_compilable(line) {
                // A line that is no rule says nothing, as in git.
                let _ = rules.add_line(None, line);
                is_empty = false;
            }
        }
    }
    if is_empty { None } else { rules.build().ok() }
}

/// Whether a pattern is small enough to be compiled.
pub fn is_compilable(pattern: &str) -> bool {
    let braces = pattern.bytes().filter(|byte| *byte == b'{').count();
    pattern.len() <= PATTERN_BYTES_MAX && braces <= PATTERN_BRACES_MAX
}
