//! The conversation as alternating turns, which is what every wire wants in the end.
//!
//! What lies between two answers becomes one turn of the user: tool results first (a wire refuses them anywhere
//! else), then what was said, then what the operator added. The order depends on nothing but the entries between the
//! two answers, so a turn that was sent once is sent the same ever after.

use protocol::content::{Content, Source};
use serde_json::value::RawValue;

use super::prompt::{Message, ToolResult, UserBlock};

/// Stands for a message of the user that says nothing; wires refuse empty ones.
pub(super) const EMPTY_MESSAGE: &str = "(empty message)";

/// Stands for an answer that says nothing.
pub(super) const EMPTY_ANSWER: &str = "(empty answer)";

/// One turn.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    User(UserTurn<'a>),
    Assistant(&'a [Box<RawValue>]),
}

/// What lies between two answers.
#[derive(Debug, Default)]
pub(super) struct UserTurn<'a> {
    pub(super) results: Vec<&'a ToolResult>,
    pub(super) content: Vec<&'a Content>,
    pub(super) system: Vec<&'a str>,
}

/// The conversation as turns.
pub(super) fn turns(messages: &[Message]) -> Vec<Turn<'_>> {
    let mut turns = Vec::new();
    let mut open: Option<UserTurn<'_>> = None;
    for message in messages {
        match message {
            Message::User(blocks) => {
                let turn = open.get_or_insert_default();
                for block in blocks {
                    match block {
                        UserBlock::ToolResult(result) => turn.results.push(result),
                        UserBlock::Content(content) => turn.content.push(content),
                    }
                }
            }
            Message::System(text) => open.get_or_insert_default().system.push(text),
            Message::Assistant(blocks) => {
                turns.extend(open.take().map(Turn::User));
                turns.push(Turn::Assistant(blocks));
            }
        }
    }
    turns.extend(open.map(Turn::User));
    turns
}

/// An operator's text for a wire that has no place for it, as part of what the user says.
pub(super) fn wrapped_system(text: &str) -> String {
    format!("<system-message>\n{text}\n</system-message>")
}

/// Text for content that no provider can be given: files of ours, and what the server withholds.
pub(super) fn stand_in(content: &Content) -> Option<String> {
    match content {
        Content::Redacted {} => Some("[withheld]".to_owned()),
        Content::Image { source: Source::File { file_id } }
        | Content::Document { source: Source::File { file_id }, .. } => {
            Some(format!("[file {file_id} is not available]"))
        }
        Content::Text { .. }
        | Content::Image { .. }
        | Content::Document { .. }
        | Content::SearchResult { .. } => None,
    }
}
