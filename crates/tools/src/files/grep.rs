//! `grep`: lines by a regular expression, as `rg -n --no-heading` shows them.
//!
//! Like ripgrep it leaves out hidden files, what the repository's ignore files name, and binary files.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use rustix::fs::FileType;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use crate::confine::{Place, Roots, reason};
use crate::tool::Stop;
use crate::walk::{LeaveOut, Walk};
use crate::wire::Output;

/// More than this is not shown.
const OUTPUT_BYTES_MAX: usize = 100 << 10;

/// What is shown of one line. Generated files have lines of megabytes.
const LINE_BYTES_MAX: usize = 2000;

/// As many files and directories as one search looks at.
const WALKED_MAX: usize = 250_000;

/// A line longer than this ends the search of its file: a searcher keeps a whole line in memory.
const LINE_HEAP_BYTES_MAX: usize = 8 << 20;

/// A pattern whose automaton is larger than this is refused.
const REGEX_BYTES_MAX: usize = 8 << 20;

/// How deep a pattern may nest. The compiler of patterns recurses, on a thread's small stack.
const NEST_MAX: u32 = 100;

/// As much as is shown of what is wrong with a pattern.
const MESSAGE_BYTES_MAX: usize = 2000;

/// How much of a processor one search may use.
const CPU_TIME_MAX: Duration = Duration::from_secs(30);

/// What the model gives.
#[derive(Deserialize)]
pub struct Input {
    pattern: String,
    path: Option<String>,
}

/// Runs the tool.
pub fn run(roots: &Roots, input: Input, stop: &Stop) -> Result<Output, String> {
    let Input { pattern, path } = input;
    let matcher = RegexMatcherBuilder::new()
        .line_terminator(Some(b'\n'))
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .nest_limit(NEST_MAX)
        .build(&pattern)
        .map_err(|cause| invalid(&cause.to_string()))?;
    let search = match path.as_deref() {
        None | Some("") => roots.workdir(),
        Some(path) => roots.resolve(path).map_err(|cause| cause.to_string())?,
    };
    let shown = path.as_deref().filter(|path| !path.is_empty()).unwrap_or(".");
    let stat = search.stat().map_err(|cause| format!("{shown}: {}", reason(&cause)))?;
    let mut grep = Grep { matcher, searcher: searcher(), found: Found::default(), stop, started: cpu_time() };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => grep.file(&search),
        FileType::Directory => grep.directory(&search)?,
        _ => return Err(format!("{shown}: not a regular file or directory")),
    }
    grep.check()?;
    Ok(Output::text(grep.found.finish()))
}

/// The message quotes the pattern, however long that is; its end says what is wrong.
fn invalid(cause: &str) -> String {
    let cut = cause.ceil_char_boundary(cause.len().saturating_sub(MESSAGE_BYTES_MAX));
    format!("invalid regex: {}", &cause[cut..])
}

fn searcher() -> Searcher {
    SearcherBuilder::new()
        .line_number(true)
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(LINE_HEAP_BYTES_MAX))
        .build()
}

struct Grep<'a> {
    matcher: RegexMatcher,
    searcher: Searcher,
    found: Found,
    stop: &'a Stop,
    started: Duration,
}

impl Grep<'_> {
    fn directory(&mut self, search: &Place) -> Result<(), String> {
        let mut walk = Walk::new(search, LeaveOut::LikeRipgrep, WALKED_MAX);
        for entry in walk.by_ref() {
            self.check()?;
            if entry.kind.is_file() {
                self.file(&search.below(&entry.relative));
            }
            if self.found.is_full {
                break;
            }
        }
        self.found.is_partial = walk.is_cut();
        Ok(())
    }

    /// Searches one file. It is opened through the root, whatever the walk saw; a file that cannot be
    /// opened or read to its end contributes what was found before.
    fn file(&mut self, place: &Place) {
        let Ok(opened) = place.open() else {
            return;
        };
        let path = place.path();
        let source = Watched { file: &opened.file, stop: self.stop, started: self.started };
        let sink = InFile { path: &path, found: &mut self.found };
        let _ = self.searcher.search_reader(&self.matcher, source, sink);
    }

    fn check(&self) -> Result<(), String> {
        self.stop.check()?;
        if is_over(self.started) {
            return Err(format!("timed out after {}s", CPU_TIME_MAX.as_secs()));
        }
        Ok(())
    }
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn is_over(started: Duration) -> bool {
    cpu_time().saturating_sub(started) > CPU_TIME_MAX
}

/// A file whose reading ends when the call does.
struct Watched<'a> {
    file: &'a std::fs::File,
    stop: &'a Stop,
    started: Duration,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.check().is_err() || is_over(self.started) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.read(buffer)
    }
}

/// The lines found so far, up to the bound.
#[derive(Default)]
struct Found {
    text: String,
    is_full: bool,
    /// Whether there were more files than a search looks at.
    is_partial: bool,
}

impl Found {
    /// Adds a line; whether there is room for more.
    fn push(&mut self, path: &Path, number: u64, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_long = line.len() > LINE_BYTES_MAX;
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES_MAX)]);
        let end = if is_long { " [... omitted end of long line]" } else { "" };
        let line = format!("{}:{number}:{line}{end}", path.display());
        if self.text.len() + line.len() + 1 > OUTPUT_BYTES_MAX {
            self.is_full = true;
            return false;
        }
        self.line(&line);
        true
    }

    fn finish(mut self) -> String {
        if self.is_full {
            self.line(&format!("[output truncated at {OUTPUT_BYTES_MAX} bytes]"));
        } else if self.is_partial {
            self.line(&format!("[only the first {WALKED_MAX} files and directories were searched]"));
        } else if self.text.is_empty() {
            self.line("no matches");
        }
        self.text
    }

    fn line(&mut self, line: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(line);
    }
}

struct InFile<'a> {
    path: &'a Path,
    found: &'a mut Found,
}

impl Sink for InFile<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, line: &SinkMatch<'_>) -> io::Result<bool> {
        Ok(self.found.push(self.path, line.line_number().unwrap_or(0), line.bytes()))
    }
}
