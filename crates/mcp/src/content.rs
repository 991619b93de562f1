//! What a tool gave, as content blocks that a model's provider takes.
//!
//! What it would refuse is said in words instead: a bad picture in a log would spoil every request after it.

use protocol::content::{Content, Source};
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use crate::limits::{BLOCKS_MAX, IMAGE_BYTES_MAX, MEDIA_BYTES_MAX};
use crate::media;
use crate::tools::cut;

/// What a tool gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// At least one block.
    pub content: Vec<Content>,
    /// Whether the tool says that it failed.
    pub is_error: bool,
}

/// How much of a name or an address is shown.
const LABEL_CHARS_MAX: usize = 500;

pub(crate) fn output(result: CallToolResult) -> Output {
    let CallToolResult { content, structured_content, is_error, .. } = result;
    let left_out = content.len().saturating_sub(BLOCKS_MAX);
    let has_text = content.iter().any(|block| matches!(block, ContentBlock::Text(_)));
    let mut room = MEDIA_BYTES_MAX;
    let mut blocks: Vec<Content> =
        content.into_iter().take(BLOCKS_MAX).filter_map(|block| content_of(block, &mut room)).collect();
    // Servers are to give the same as text, too; what they did not is said here.
    if let Some(structured) = structured_content.filter(|_| !has_text) {
        blocks.push(Content::text(structured.to_string()));
    }
    if left_out > 0 {
        blocks.push(Content::text(format!("[{left_out} more blocks are not shown]")));
    }
    if blocks.is_empty() {
        blocks.push(Content::text("(no output)"));
    }
    Output { content: blocks, is_error: is_error.unwrap_or(false) }
}

/// One block. `room` is what is left for pictures and documents.
fn content_of(block: ContentBlock, room: &mut usize) -> Option<Content> {
    Some(match block {
        ContentBlock::Text(block) if block.text.is_empty() => return None,
        ContentBlock::Text(block) => Content::text(block.text),
        ContentBlock::Image(block) => image(block.mime_type, block.data, room),
        ContentBlock::Audio(block) => Content::text(format!(
            "[audio, {}, {} bytes: not shown]",
            label(&block.mime_type),
            bytes_of(&block.data)
        )),
        ContentBlock::Resource(block) => match block.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => {
                Content::text(format!("[resource {}]\n{text}", label(&uri)))
            }
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                blob_of(&uri, mime_type.unwrap_or_default(), blob, room)
            }
            _ => Content::text("[a resource of a kind that is not known here]"),
        },
        ContentBlock::ResourceLink(link) => {
            let about = link.description.map(|text| format!(": {}", label(&text))).unwrap_or_default();
            let text = format!("[link to the resource {} ({}){about}]", label(&link.uri), label(&link.name));
            Content::text(text)
        }
        _ => Content::text("[content of a kind that is not known here]"),
    })
}

fn image(media_type: String, data: String, room: &mut usize) -> Content {
    let is_image = media_type.starts_with("image/");
    let taken = if is_image { taken(&media_type, &data, room) } else { Err(media::OTHER) };
    match taken {
        Ok(()) => Content::Image { source: Source::Base64 { media_type, data } },
        Err(why) => {
            let (kind, size) = (label(&media_type), bytes_of(&data));
            Content::text(format!("[image, {kind}, {size} bytes: not shown, {why}]"))
        }
    }
}

fn blob_of(uri: &str, media_type: String, data: String, room: &mut usize) -> Content {
    let size = bytes_of(&data);
    let why = if !media::is_known(&media_type) {
        String::new()
    } else if let Err(why) = taken(&media_type, &data, room) {
        format!(", {why}")
    } else {
        let is_image = media_type.starts_with("image/");
        let source = Source::Base64 { media_type, data };
        return if is_image {
            Content::Image { source }
        } else {
            Content::Document { source, title: Some(label(uri)), context: None }
        };
    };
    let kind = if media_type.is_empty() { "binary".to_owned() } else { label(&media_type) };
    Content::text(format!("[resource {}, {kind}, {size} bytes: not shown{why}]", label(uri)))
}

/// Whether a model's provider takes a picture or a document, and there is room for it, which it then has.
fn taken(media_type: &str, data: &str, room: &mut usize) -> Result<(), &'static str> {
    if media_type.starts_with("image/") && data.len() > IMAGE_BYTES_MAX {
        return Err("it is too large");
    }
    let left = room.checked_sub(data.len()).ok_or("the result holds too much of the kind")?;
    media::check(media_type, data)?;
    *room = left;
    Ok(())
}

fn bytes_of(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

fn label(text: &str) -> String {
    cut(text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect(), LABEL_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use super::*;

    fn shown(result: Value) -> Value {
        let result: CallToolResult = serde_json::from_value(result).expect("a result");
        let Output { content, is_error } = output(result);
        json!({"content": content, "is_error": is_error})
    }

    const PNG: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

    #[test]
    fn each_kind_of_content_becomes_what_a_model_takes() {
        let result = shown(json!({"content": [
            {"type": "text", "text": "hello"}, {"type": "text", "text": ""},
            {"type": "image", "mimeType": "image/png", "data": PNG},
            {"type": "audio", "mimeType": "audio/wav", "data": "AAAA"},
            {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "file:///a.bin", "mimeType": "application/zip", "blob": "AAAA"}},
            {"type": "resource_link", "uri": "file:///b", "name": "b", "description": "more"},
        ], "isError": true}));
        assert_eq!(
            result,
            json!({"content": [
                {"type": "text", "text": "hello"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "text", "text": "[audio, audio/wav, 3 bytes: not shown]"},
                {"type": "text", "text": "[resource file:///a.txt]\ninside"},
                {"type": "text", "text": "[resource file:///a.bin, application/zip, 3 bytes: not shown]"},
                {"type": "text", "text": "[link to the resource file:///b (b): more]"},
            ], "is_error": true})
        );
    }

    #[test]
    fn a_picture_that_is_none_is_said_in_words() {
        for (kind, data) in [
            ("image/png", "AAAA"),
            ("image/svg+xml", "AAAA"),
            ("image/png", "iVBORw0KGgo!"),
            ("image/png", "iVBORw0KGgoAAAAA"),
            ("image/jpeg", PNG),
            ("application/pdf", "JVBERi0xLjQKJSVFT0YK"),
        ] {
            let result = shown(json!({"content": [{"type": "image", "mimeType": kind, "data": data}]}));
            assert_eq!(result["content"][0]["type"], "text", "{kind} {data}");
        }
    }

    #[test]
    fn structured_content_is_shown_where_there_is_no_text() {
        let result = shown(json!({"content": [], "structuredContent": {"sum": 3}}));
        assert_eq!(result["content"], json!([{"type": "text", "text": "{\"sum\":3}"}]));
        let both =
            shown(json!({"content": [{"type": "text", "text": "3"}], "structuredContent": {"sum": 3}}));
        assert_eq!(both["content"], json!([{"type": "text", "text": "3"}]));
        assert_eq!(shown(json!({"content": []}))["content"][0]["text"], "(no output)");
    }

    #[test]
    fn pictures_and_documents_have_no_more_room_together_than_they_may() {
        let pdf = STANDARD.encode(format!("%PDF-1.7\n{}\nstartxref\n9\n%%EOF\n", "x".repeat(2 << 20)));
        let blob = |name: &str| json!({"type": "resource", "resource": {"uri": name, "mimeType": "application/pdf", "blob": pdf}});
        let image = json!({"type": "image", "mimeType": "image/png", "data": PNG});
        let result = shown(json!({"content": [blob("a"), blob("b"), blob("c"), image]}));
        let kinds: Vec<&str> = result["content"]
            .as_array()
            .expect("blocks")
            .iter()
            .map(|block| &block["type"])
            .map(|kind| kind.as_str().expect("a type"))
            .collect();
        assert_eq!(kinds, ["document", "document", "text", "image"]);
        let told = result["content"][2]["text"].as_str().expect("text");
        assert!(told.ends_with("bytes: not shown, the result holds too much of the kind]"), "{told}");
    }

    #[test]
    fn a_flood_of_blocks_is_cut() {
        let block = json!({"type": "text", "text": "x"});
        let result = shown(json!({"content": vec![block; BLOCKS_MAX + 7]}));
        assert_eq!(result["content"][BLOCKS_MAX]["text"], "[7 more blocks are not shown]");
    }
}
