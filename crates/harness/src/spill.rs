//! A result that is too long to show goes to a file of the sandbox.
//!
//! What runs in a sandbox does this by itself, in the same words ([`tools::preview`]). This is for what does not.

use protocol::content::Content;
use protocol::id::EventId;
use serde_json::{Map, Value};
use tools::preview::{OVERFLOW_DIR, SHOWN_CHARS_MAX, preview};

/// A result whose text is too long to show.
pub(crate) struct Spilt {
    text: String,
    chars: usize,
    /// What else it holds.
    others: Vec<Content>,
}

/// Takes a result apart whose text is longer than models are shown. All its text goes to one file, in its order.
pub(crate) fn too_long(content: Vec<Content>) -> Result<Spilt, Vec<Content>> {
    let chars = |content: &Content| match content {
        Content::Text { text } => text.chars().count(),
        _ => 0,
    };
    if content.iter().map(chars).sum::<usize>() <= SHOWN_CHARS_MAX {
        return Err(content);
    }
    let (mut texts, mut others) = (Vec::new(), Vec::new());
    for block in content {
        match block {
            Content::Text { text } => texts.push(text),
            other => others.push(other),
        }
    }
    let text = texts.join("\n");
    Ok(Spilt { chars: text.chars().count(), text, others })
}

impl Spilt {
    /// Where it goes.
    pub(crate) fn path(call: &EventId) -> String {
        format!("{OVERFLOW_DIR}/{call}.txt")
    }

    /// The input with which the tool `write` puts it there.
    pub(crate) fn input(&self, call: &EventId) -> Map<String, Value> {
        let (path, text) = (Self::path(call), self.text.clone());
        Map::from_iter([("file_path".to_owned(), path.into()), ("content".to_owned(), text.into())])
    }

    /// What the model is shown. `saved` says where all of it is.
    pub(crate) fn shown(self, saved: &str) -> Vec<Content> {
        let Self { text, chars, others } = self;
        [Content::text(preview(&text, chars, saved))].into_iter().chain(others).collect()
    }
}
