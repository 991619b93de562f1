//! Content blocks: what messages and tool results are made of.

use serde::{Deserialize, Serialize};

/// One block of a message or a tool result, as the wire shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Content {
    /// Plain text, never empty.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    Image {
        /// Where its bytes are.
        source: Source,
    },
    /// A document.
    Document {
        /// Where its bytes are.
        source: Source,
        /// A title for the model.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        /// What the model should know about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        context: Option<String>,
    },
    /// One hit of a search that a client's tool made.
    SearchResult {
        /// Where it was found.
        source: String,
        /// Its title.
        title: String,
        /// Its text blocks.
        content: Vec<TextBlock>,
        /// Whether the model may cite it.
        citations: Citations,
    },
    /// Content that the server withholds. Never accepted from a client.
    Redacted {},
}

impl Content {
    /// A text block.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// About how many bytes it takes: its texts and data.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text { text } => text.len(),
            Self::Image { source } => source.size_bytes(),
            Self::Document { source, title, context } => {
                let texts = [title, context].into_iter().flatten().map(String::len);
                source.size_bytes() + texts.sum::<usize>()
            }
            Self::SearchResult { source, title, content, citations: _ } => {
                source.len() + title.len() + content.iter().map(|block| block.text.len()).sum::<usize>()
            }
            Self::Redacted {} => 0,
        }
    }
}

/// Where the bytes of an image or a document are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// In the block itself.
    Base64 {
        /// The MIME type.
        media_type: String,
        /// The bytes, base64.
        data: String,
    },
    /// In the block itself, as plain text. Documents only.
    Text {
        /// Always `text/plain`.
        media_type: String,
        /// The text.
        data: String,
    },
    /// At a public address; the model's provider fetches it.
    Url {
        /// The address.
        url: String,
    },
    /// In the files store.
    File {
        /// Its id.
        file_id: String,
    },
}

impl Source {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Base64 { media_type: _, data } | Self::Text { media_type: _, data } => data.len(),
            Self::Url { url } => url.len(),
            Self::File { file_id } => file_id.len(),
        }
    }
}

/// A block that can only be text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextBlock {
    /// Always `text`.
    #[serde(rename = "type")]
    pub kind: TextTag,
    /// The text.
    pub text: String,
}

/// The tag of a [`TextBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTag {
    /// The only tag there is.
    Text,
}

/// Whether a search result may be cited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Citations {
    /// True if the model may cite it.
    pub enabled: bool,
}
