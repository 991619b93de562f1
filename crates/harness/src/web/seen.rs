//! Which addresses a session has shown its model: only those may be fetched.
//!
//! A model that builds addresses itself could carry what it knows to a stranger in a query. So an address counts only if
//! it stands, as a whole, in a user's message, in what a client's tool answered, or in what `web_search` or `web_fetch`
//! gave before; `url_sources` narrows that further. What sandbox tools print does not count: a command's output is
//! whatever the model lets it say.

use std::collections::HashSet;

use protocol::content::{Content, Source};
use protocol::id::EventId;
use protocol::web::UrlSources;
use reqwest::Url;
use serde::Deserialize;

/// The kinds of event that are looked at.
pub(crate) const KINDS: [&str; 5] = [
    "user.message",
    "user.custom_tool_result",
    "agent.tool_result",
    "agent.tool_use",
    "agent.custom_tool_use",
];

/// How many signs at the end of an address in running text may belong to the sentence.
const TRAILING_SIGNS_MAX: usize = 8;

/// The search for one address through a log, from its end to its beginning.
#[derive(Debug)]
pub(crate) struct Trail<'a> {
    wanted: Url,
    sources: &'a UrlSources,
    /// The calls whose results hold the address. Which tool they are of is said further up in the log.
    held_by: HashSet<EventId>,
}

#[derive(Deserialize)]
struct Said {
    content: Vec<Content>,
}

#[derive(Deserialize)]
struct Resulted {
    #[serde(alias = "custom_tool_use_id")]
    tool_use_id: EventId,
    #[serde(default)]
    content: Vec<Content>,
    #[serde(default)]
    is_error: Option<bool>,
}

#[derive(Deserialize)]
struct Used {
    id: EventId,
    name: String,
}

impl<'a> Trail<'a> {
    pub(crate) fn new(url: &Url, sources: &'a UrlSources) -> Self {
        Self { wanted: without_fragment(url.clone()), sources, held_by: HashSet::new() }
    }

    /// Looks at an event of one of [`KINDS`]. Events come newest first. `true`: the address was seen.
    pub(crate) fn look(&mut self, kind: &str, json: &[u8]) -> Result<bool, serde_json::Error> {
        match kind {
            "user.message" if self.sources.takes_user_input() => {
                let Said { content } = serde_json::from_slice(json)?;
                return Ok(content
                    .iter()
                    .flat_map(texts_of)
                    .any(|text| self.is_in(text) || self.is_named_in(text)));
            }
            "user.custom_tool_result" | "agent.tool_result" => {
                let Resulted { tool_use_id, content, is_error } = serde_json::from_slice(json)?;
                // An error of ours may repeat the address that was refused.
                let is_refusal = kind == "agent.tool_result" && is_error == Some(true);
                if !is_refusal && content.iter().flat_map(texts_of).any(|text| self.is_in(text)) {
                    self.held_by.insert(tool_use_id);
                }
            }
            "agent.tool_use" | "agent.custom_tool_use" if !self.held_by.is_empty() => {
                let Used { id, name } = serde_json::from_slice(json)?;
                return Ok(self.held_by.remove(&id) && self.counts(kind, &name));
            }
            _ => {}
        }
        Ok(false)
    }

    fn counts(&self, kind: &str, name: &str) -> bool {
        match kind {
            "agent.custom_tool_use" => self.sources.takes_client_tool(name),
            _ => matches!(name, "web_search" | "web_fetch") && self.sources.takes_server_tool(name),
        }
    }

    /// Whether the address stands in a text, with its scheme.
    fn is_in(&self, text: &str) -> bool {
        text.match_indices("://").any(|(middle, _)| {
            let scheme = ["https", "http"].into_iter().find(|scheme| {
                text[..middle]
                    .get(middle.saturating_sub(scheme.len())..)
                    .is_some_and(|end| end.eq_ignore_ascii_case(scheme))
            });
            scheme.is_some_and(|scheme| self.is_at_start_of(&text[middle - scheme.len()..], ""))
        })
    }

    /// Whether a person names the address without its scheme: "look at example.com/news".
    fn is_named_in(&self, text: &str) -> bool {
        let words = text.split(|sign: char| sign.is_whitespace() || is_delimiter(sign));
        let starts = words.map(|word| word.trim_start_matches(['(', '[', '\'', '*', '_']));
        starts.filter(|word| word.contains('.') && !word.contains("://")).any(|word| {
            let scheme = if self.wanted.scheme() == "http" { "http://" } else { "https://" };
            self.is_at_start_of(word, scheme)
        })
    }

    /// Whether the text begins with the address, as far as an address goes in running text.
    fn is_at_start_of(&self, text: &str, scheme: &str) -> bool {
        let end = text.find(|sign: char| sign.is_whitespace() || is_delimiter(sign)).unwrap_or(text.len());
        let text = &text[..end];
        // A link in Markdown whose text is an address.
        let mut text = text.split_once("](").map_or(text, |(before, _)| before);
        for _ in 0..=TRAILING_SIGNS_MAX {
            if self.is(&format!("{scheme}{text}")) {
                return true;
            }
            match text.char_indices().next_back() {
                Some((
                    last,
                    '.' | ',' | ';' | ':' | '!' | '?' | '\'' | '*' | '_' | '~' | ')' | ']' | '\\',
                )) => {
                    text = &text[..last];
                }
                _ => return false,
            }
        }
        false
    }

    fn is(&self, written: &str) -> bool {
        // Markdown escapes signs that mean something to it.
        let unescaped = written.contains('\\').then(|| written.replace('\\', ""));
        [Some(written), unescaped.as_deref()].into_iter().flatten().any(|written| {
            let Ok(mut url) = Url::parse(written) else { return false };
            // Asking for the safer form of an address that was seen gives nobody anything.
            if url.scheme() == "http" && self.wanted.scheme() == "https" && url.set_scheme("https").is_err() {
                return false;
            }
            without_fragment(url) == self.wanted
        })
    }
}

fn without_fragment(mut url: Url) -> Url {
    url.set_fragment(None);
    url
}

/// Signs that no address holds unescaped.
fn is_delimiter(sign: char) -> bool {
    sign.is_control() || matches!(sign, '"' | '<' | '>' | '`' | '{' | '}' | '|' | '^')
}

/// What of a block can be read.
fn texts_of(content: &Content) -> Vec<&str> {
    match content {
        Content::Text { text } => vec![text],
        Content::Image { source } => address_or_text(source).into_iter().collect(),
        Content::Document { source, title, context } => {
            [address_or_text(source), title.as_deref(), context.as_deref()].into_iter().flatten().collect()
        }
        Content::SearchResult { source, title, content, citations: _ } => {
            let texts = content.iter().map(|block| block.text.as_str());
            [source.as_str(), title].into_iter().chain(texts).collect()
        }
        Content::Redacted {} => Vec::new(),
    }
}

fn address_or_text(source: &Source) -> Option<&str> {
    match source {
        Source::Text { media_type: _, data } => Some(data),
        Source::Url { url } => Some(url),
        Source::Base64 { .. } | Source::File { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use protocol::web::{ToolFilter, ToolReference, ToolReferenceTag, UserInput};
    use serde_json::{Value, json};

    use super::*;

    /// Whether a log, newest event first, shows the address.
    fn seen(url: &str, sources: &UrlSources, log: &[Value]) -> bool {
        let mut trail = Trail::new(&Url::parse(url).expect("a URL"), sources);
        log.iter().any(|event| {
            let kind = event["type"].as_str().expect("a kind");
            trail.look(kind, event.to_string().as_bytes()).expect("can be read")
        })
    }

    fn user(text: &str) -> Value {
        json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
    }

    fn said(url: &str, text: &str) -> bool {
        seen(url, &UrlSources::default(), &[user(text)])
    }

    /// A call and its result, newest first.
    fn result(tool: &str, is_custom: bool, text: &str) -> [Value; 2] {
        let content = json!([{"type": "text", "text": text}]);
        if is_custom {
            return [
                json!({"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_1", "content": content}),
                json!({"type": "agent.custom_tool_use", "id": "sevt_1", "name": tool, "input": {}}),
            ];
        }
        [
            json!({"type": "agent.tool_result", "tool_use_id": "sevt_1", "content": content, "is_error": false}),
            json!({"type": "agent.tool_use", "id": "sevt_1", "name": tool, "input": {}}),
        ]
    }

    #[test]
    fn an_address_counts_as_a_whole_wherever_it_stands_in_a_sentence() {
        let url = "https://example.com/a_b?q=1";
        for text in [
            "https://example.com/a_b?q=1",
            "Read https://example.com/a_b?q=1.",
            "Read (https://example.com/a_b?q=1), then stop",
            "[here](https://example.com/a_b?q=1)",
            "[https://example.com/a_b?q=1](/elsewhere)",
            "<https://example.com/a_b?q=1>",
            r"https://example.com/a\_b?q=1",
            "HTTPS://EXAMPLE.COM:443/a_b?q=1#part",
            "http://example.com/a_b?q=1",
            "see example.com/a_b?q=1!",
            "**https://example.com/a_b?q=1**",
        ] {
            assert!(said(url, text), "{text}");
        }
        for text in [
            "https://example.com/a_b?q=12",
            "https://example.com/a_b",
            "https://example.com.evil.test/a_b?q=1",
            "https://evil.test/?u=https%3A%2F%2Fexample.com",
            "xhttps//example.com/a_b?q=1",
            "",
        ] {
            assert!(!said(url, text), "{text}");
        }
        assert!(!said("http://example.com/", "https://example.com/"), "never the less safe form");
        assert!(said("https://example.com", "what does example.com say?"));
        assert!(said("http://example.com/x#there", "http://example.com/x#here"));
        assert!(said(
            "https://en.wikipedia.org/wiki/Rust_(disambiguation)",
            "https://en.wikipedia.org/wiki/Rust_(disambiguation)"
        ));
        assert!(!said("https://example.com/ü", "ü://é://"), "odd text is only text");
    }

    #[test]
    fn results_of_the_web_tools_and_of_the_clients_tools_count_and_those_of_the_sandbox_do_not() {
        let url = "https://example.com/page";
        let all = UrlSources::default();
        assert!(seen(url, &all, &result("weather", true, url)));
        assert!(seen(url, &all, &result("web_search", false, url)));
        assert!(seen(url, &all, &result("web_fetch", false, url)));
        assert!(!seen(url, &all, &result("bash", false, url)));
        assert!(
            !seen(url, &all, &result("web_fetch", false, "example.com/page")),
            "a page's words are not a person's"
        );
        let refused = json!({"type": "agent.tool_result", "tool_use_id": "sevt_1", "is_error": true,
                             "content": [{"type": "text", "text": format!("web_fetch: url_not_allowed: {url}")}]});
        let [_, call] = result("web_fetch", false, url);
        assert!(!seen(url, &all, &[refused, call]), "a refusal shows nothing");
        let hit = json!({"type": "agent.tool_result", "tool_use_id": "sevt_1", "content": [
            {"type": "search_result", "source": url, "title": "t", "content": [], "citations": {"enabled": false}}]});
        let [_, call] = result("web_search", false, url);
        assert!(seen(url, &all, &[hit, call]));
    }

    #[test]
    fn sources_narrow_what_counts() {
        let url = "https://example.com/page";
        let named =
            |name: &str| vec![ToolReference { kind: ToolReferenceTag::ToolReference, name: name.to_owned() }];
        let no_user = UrlSources { user_input: Some(UserInput::None {}), ..UrlSources::default() };
        assert!(!seen(url, &no_user, &[user(url)]));
        assert!(seen(url, &no_user, &result("web_search", false, url)));
        let only = UrlSources {
            client_tool_results: Some(ToolFilter::Only { tools: named("weather") }),
            server_tool_results: Some(ToolFilter::Except { tools: named("web_fetch") }),
            ..UrlSources::default()
        };
        assert!(seen(url, &only, &result("weather", true, url)));
        assert!(!seen(url, &only, &result("Weather", true, url)));
        assert!(seen(url, &only, &result("web_search", false, url)));
        assert!(!seen(url, &only, &result("web_fetch", false, url)));
        let none = UrlSources { server_tool_results: Some(ToolFilter::None {}), ..UrlSources::default() };
        assert!(!seen(url, &none, &result("web_search", false, url)));
    }
}
