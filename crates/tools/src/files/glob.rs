//! `glob`: names by a pattern, newest first.

use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use rustix::fs::FileType;
use serde::Deserialize;

use crate::confine::{Place, Roots, reason};
use crate::tool::Stop;
use crate::walk::{LeaveOut, Walk, is_compilable};
use crate::wire::Output;

/// As many names as one result lists.
const RESULTS_MAX: usize = 200;

/// As many files and directories as one call looks at.
const WALKED_MAX: usize = 50_000;

/// Looked into only when the pattern or the path names them: their thousands of files would use up
/// [`WALKED_MAX`] before anything of interest is reached.
const SKIPPED: [&str; 2] = [".git", "node_modules"];

/// What the model gives.
#[derive(Deserialize)]
pub struct Input {
    pattern: String,
    path: Option<String>,
}

/// Runs the tool.
pub fn run(roots: &Roots, input: Input, stop: &Stop) -> Result<Output, String> {
    let Input { pattern, path } = input;
    if pattern.is_empty() {
        return Err("pattern is required".into());
    }
    if Path::new(&pattern).is_absolute() {
        return Err("absolute pattern not permitted; pass a relative pattern (and optionally path)".into());
    }
    if Path::new(&pattern).components().any(|component| component == Component::ParentDir) {
        return Err("'..' is not permitted in the pattern".into());
    }
    if !is_compilable(&pattern) {
        return Err("the pattern is too long or has too many braces".into());
    }
    let search = match path.as_deref() {
        None | Some("") => roots.workdir(),
        Some(path) => roots.resolve(path).map_err(|cause| cause.to_string())?,
    };
    let shown = path.as_deref().filter(|path| !path.is_empty()).unwrap_or(".");
    match search.stat() {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {}
        Ok(_) => return Err(format!("{shown}: not a directory")),
        Err(cause) => return Err(format!("{shown}: {}", reason(&cause))),
    }
    let mut found = matches(roots, &search, &pattern, stop)?;
    found.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.path.cmp(&b.path)));
    if found.is_empty() {
        return Ok(Output::text("no matches"));
    }
    let paths: Vec<_> = found.iter().take(RESULTS_MAX).map(|found| found.path.to_string_lossy()).collect();
    Ok(Output::text(paths.join("\n")))
}

struct Match {
    path: PathBuf,
    modified: (i64, u64),
}

fn matches(roots: &Roots, search: &Place, pattern: &str, stop: &Stop) -> Result<Vec<Match>, String> {
    let components = Path::new(pattern).components().filter(|component| *component != Component::CurDir);
    let pattern = components.collect::<PathBuf>();
    let pattern = pattern.to_str().expect("the parts of a string are strings");
    let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    let glob = glob.map_err(|cause| cause.to_string())?.compile_matcher();
    // `src/**/*.rs` needs to look only below `src`; one walked there is one not wasted elsewhere.
    let start = search.below(&literal_directories(pattern));
    let Ok(start) = roots.resolve(&start.path().to_string_lossy()) else {
        return Ok(Vec::new());
    };
    if !start.within(search) {
        return Ok(Vec::new());
    }
    let skipped: Vec<&str> = SKIPPED.into_iter().filter(|name| !pattern.contains(name)).collect();
    let root = search.path();
    let mut found = Vec::new();
    for entry in Walk::new(&start, LeaveOut::Below(&skipped), WALKED_MAX) {
        stop.check()?;
        let path = start.path().join(entry.relative);
        let Ok(relative) = path.strip_prefix(&root) else {
            continue;
        };
        if !glob.is_match(relative) {
            continue;
        }
        if entry.kind.is_symlink() && !leads_below(roots, &path, search) {
            continue;
        }
        // Asked through the root, so that a directory swapped for a link under the walk's feet shows nothing.
        if let Ok(stat) = search.below(relative).stat() {
            found.push(Match { path, modified: (stat.st_mtime, stat.st_mtime_nsec) });
        }
    }
    Ok(found)
}

fn leads_below(roots: &Roots, link: &Path, search: &Place) -> bool {
    link.to_str().and_then(|link| roots.resolve(link).ok()).is_some_and(|place| place.within(search))
}

/// The directories at the start of a pattern that have no special character in them.
fn literal_directories(pattern: &str) -> PathBuf {
    let is_literal = |name: &&str| !name.contains(['*', '?', '[', ']', '{', '}', '\\', ',']);
    let directories = pattern.rsplit_once('/').map_or("", |(directories, _)| directories);
    // A brace may span several components; then nothing before its end is literal, which the first
    // component with `{` in it settles.
    directories.split('/').take_while(is_literal).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_starts_at_the_first_special_character() {
        let cases = [
            ("src/**/*.rs", "src"),
            ("a/b/c.txt", "a/b"),
            ("*.rs", ""),
            ("a*/b/c", ""),
            ("{a/b,c}/d", ""),
            ("a/{b/c,d}/e", "a"),
        ];
        for (pattern, expected) in cases {
            assert_eq!(literal_directories(pattern), Path::new(expected), "{pattern}");
        }
    }
}
