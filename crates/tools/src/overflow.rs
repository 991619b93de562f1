//! The last step of every result: an empty text says so, a long one goes to a file.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::Config;
use crate::confine::Roots;
use crate::preview::{SHOWN_CHARS_MAX, preview};
use crate::wire::{Content, Output};

/// What a text that is empty becomes, so that the model sees a result and not a gap.
const EMPTY: &str = "(no output)";

/// Puts long texts of an output into files and leaves a preview and the path.
pub fn settle(config: &Config, roots: &Roots, call_id: &str, mut output: Output) -> Output {
    for content in &mut output.content {
        let Content::Text { text } = content else {
            continue;
        };
        if text.is_empty() {
            *text = EMPTY.into();
        } else if text.len() > SHOWN_CHARS_MAX {
            let chars = text.chars().count();
            if chars > SHOWN_CHARS_MAX {
                *text = preview(text, chars, &save(config, roots, call_id, text));
            }
        }
    }
    output
}

/// Where the text was saved, or why not, as a half-sentence.
fn save(config: &Config, roots: &Roots, call_id: &str, text: &str) -> String {
    let path = config.overflow.join(file_name(call_id));
    let path = path.to_string_lossy();
    // The directory may by now be a link that a command has made; it is followed and held to the roots.
    match roots.resolve(&path).map_err(|cause| cause.to_string()).and_then(|place| {
        let written = place.replace(text.as_bytes());
        written.map(|()| place).map_err(|cause| crate::confine::reason(&cause))
    }) {
        Ok(place) => format!("all of it is in {}", place.path().display()),
        Err(cause) => format!("it could not be saved to {path}: {cause}"),
    }
}

/// A name that no call id can turn into a path.
fn file_name(call_id: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !call_id.is_empty() && call_id.len() <= 100 && call_id.chars().all(plain) {
        return format!("{call_id}.txt");
    }
    let mut hasher = DefaultHasher::new();
    call_id.hash(&mut hasher);
    format!("call-{:016x}.txt", hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Access, Root};
    use crate::preview::PREVIEW_CHARS;

    fn config(directory: &Path) -> Config {
        let directory = directory.canonicalize().unwrap();
        Config {
            workdir: directory.join("work"),
            outputs: directory.join("outputs"),
            extra_roots: vec![Root { path: directory.clone(), access: Access::Write }],
            overflow: directory.join("long"),
            shell: "/bin/bash".into(),
            environment: Vec::new(),
        }
    }

    fn settled(config: &Config, call_id: &str, text: String) -> String {
        let output = settle(config, &Roots::new(config), call_id, Output::text(text));
        match output.content.into_iter().next() {
            Some(Content::Text { text }) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_text_says_so() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(settled(&config(directory.path()), "c", String::new()), "(no output)");
    }

    #[test]
    fn a_text_of_exactly_the_bound_is_shown_whole() {
        let directory = tempfile::tempdir().unwrap();
        let text = "é".repeat(SHOWN_CHARS_MAX);
        assert_eq!(settled(&config(directory.path()), "c", text.clone()), text);
    }

    #[test]
    fn a_longer_text_goes_to_a_file_and_a_preview_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let text = format!("{}{}", "é".repeat(SHOWN_CHARS_MAX), "z".repeat(PREVIEW_CHARS));
        let shown = settled(&config, "toolu_1", text.clone());
        let path = config.overflow.join("toolu_1.txt");
        let first = format!(
            "[output of 105000 characters is too long to show; all of it is in {}]\n",
            path.display()
        );
        let head = "é".repeat(PREVIEW_CHARS);
        let tail = "z".repeat(PREVIEW_CHARS);
        assert_eq!(shown, format!("{first}{head}\n[95000 characters left out]\n{tail}"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
    }

    #[test]
    fn a_call_id_never_becomes_a_path() {
        for call_id in ["../../etc/passwd", "", "a/b", "a\0b", &"x".repeat(300)] {
            assert!(file_name(call_id).starts_with("call-"), "{call_id}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_preview() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        std::os::unix::fs::symlink("/proc", &config.overflow).unwrap();
        let shown = settled(&config, "c", "x".repeat(SHOWN_CHARS_MAX + 1));
        assert!(shown.contains("it could not be saved"), "{}", &shown[..200]);
    }
}
