//! What was fetched, as content for the model: text in UTF-8, cut to its limit, or a PDF as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use protocol::content::{Content, Source};
use reqwest::Url;

use super::failure::{Code, Failure};
use super::html;

/// About how many bytes of UTF-8 are one token. Right for English; other scripts have fewer letters to a token, and
/// more bytes to a letter.
const BYTES_PER_TOKEN: usize = 4;
/// How much text is given unless the agent says otherwise: about 25,000 tokens, which is where the public server cuts
/// the output of other tools.
const TEXT_BYTES_DEFAULT: usize = 100_000;
/// How much text is given whatever the agent says: about 100,000 tokens. It is kept in the log and sent to the model in
/// each request that follows.
pub(super) const TEXT_BYTES_MAX: usize = 400_000;
/// How much of a page is read. More HTML than this is never needed for the longest text.
pub(super) const PAGE_BYTES_MAX: usize = 5 << 20;
/// The largest PDF. As base64 it is two thirds of what the public Messages API takes as a request, and there is more to
/// say in one.
pub(super) const PDF_BYTES_MAX: usize = 16 << 20;
/// Where a `meta` element names a page's encoding (the HTML standard).
const META_BYTES: usize = 1_024;
/// What of the beginning shows that it is no text.
const SNIFFED_BYTES: usize = 1_024;

/// How the body is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Html,
    Text,
    Pdf,
}

/// Whether a body came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// There was more than is read.
    Cut,
}

/// What was fetched.
pub(super) struct Page {
    /// Where it was found in the end.
    pub(super) url: Url,
    pub(super) content_type: Option<String>,
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
    pub(super) end: End,
}

/// What a `Content-Type` says, or the first bytes where it says nothing. `None`: nothing that a model can read.
pub(super) fn kind_of(content_type: Option<&str>, head: &[u8]) -> Option<Kind> {
    let media_type =
        content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match media_type.as_deref() {
        Some("text/html" | "application/xhtml+xml") => Some(Kind::Html),
        Some("application/pdf" | "application/x-pdf") => Some(Kind::Pdf),
        Some(
            "application/json"
            | "application/xml"
            | "application/javascript"
            | "application/ecmascript"
            | "application/yaml"
            | "application/x-yaml"
            | "application/toml"
            | "application/x-ndjson"
            | "application/sql"
            | "application/x-sh"
            | "application/rtf"
            | "application/graphql"
            | "message/rfc822",
        ) => Some(Kind::Text),
        Some(named) if named.starts_with("text/") || named.ends_with("+json") || named.ends_with("+xml") => {
            Some(Kind::Text)
        }
        None | Some("" | "application/octet-stream" | "binary/octet-stream" | "unknown/unknown") => {
            sniffed(head)
        }
        Some(_) => None,
    }
}

fn sniffed(head: &[u8]) -> Option<Kind> {
    let head = &head[..head.len().min(SNIFFED_BYTES)];
    let start = head.trim_ascii_start();
    let begins = |with: &[u8]| start.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins(b"%PDF-") {
        Some(Kind::Pdf)
    } else if head.contains(&0) {
        None
    } else if begins(b"<!doctype html") || begins(b"<html") {
        Some(Kind::Html)
    } else {
        Some(Kind::Text)
    }
}

/// The content for the model. Busy in proportion to the page.
pub(super) fn content(page: Page, tokens_max: Option<u64>) -> Result<Vec<Content>, Failure> {
    let Page { url, content_type, kind, body, end } = page;
    if kind == Kind::Pdf {
        return pdf(&url, &body, end);
    }
    let head = &body[..body.len().min(SNIFFED_BYTES)];
    let (decoded, _, _) = encoding(content_type.as_deref(), &body, kind).decode(&body);
    if decoded.chars().take(SNIFFED_BYTES).any(|sign| sign == '\0') {
        let what = if head.starts_with(b"%PDF-") { "a PDF" } else { "binary data" };
        return Err(Failure::new(
            Code::UnsupportedContentType,
            format!("it is {what}, though it is called text"),
        ));
    }
    let limit = tokens_max.map_or(TEXT_BYTES_DEFAULT, |tokens| {
        usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(BYTES_PER_TOKEN).min(TEXT_BYTES_MAX)
    });
    let (title, text, is_cut) = match kind {
        Kind::Html => {
            let html::Readable { title, text, is_cut } = html::readable(&decoded, &url, limit);
            (title, text, is_cut)
        }
        Kind::Text | Kind::Pdf => (None, printable(&decoded), false),
    };
    let data = shortened(text, limit, is_cut || end == End::Cut);
    let data = if data.trim().is_empty() { "(the page has no text)".to_owned() } else { data };
    let source = Source::Text { media_type: "text/plain".to_owned(), data };
    Ok(vec![Content::Document { source, title, context: Some(format!("Fetched from {url}")) }])
}

fn pdf(url: &Url, body: &[u8], end: End) -> Result<Vec<Content>, Failure> {
    if end == End::Cut {
        let mebibytes = PDF_BYTES_MAX >> 20;
        return Err(Failure::new(Code::ContentTooLarge, format!("the PDF is larger than {mebibytes} MiB")));
    }
    // What is no PDF would be refused by the model's provider, in this request and in all that follow.
    let is_pdf = body.starts_with(b"%PDF-") && memchr::memmem::rfind(body, b"%%EOF").is_some();
    if !is_pdf {
        return Err(Failure::new(Code::UnsupportedContentType, "it is called a PDF and is none"));
    }
    let source = Source::Base64 { media_type: "application/pdf".to_owned(), data: STANDARD.encode(body) };
    let name = url.path_segments().and_then(|mut parts| parts.next_back()).filter(|name| !name.is_empty());
    let title = name.map(str::to_owned);
    Ok(vec![Content::Document { source, title, context: Some(format!("Fetched from {url}")) }])
}

/// The encoding of a text: a byte order mark, then what the response says, then what the page says of itself; UTF-8 if it
/// is that, and what the web used before otherwise.
fn encoding(content_type: Option<&str>, body: &[u8], kind: Kind) -> &'static Encoding {
    let named = || content_type.and_then(|text| charset_in(text.as_bytes()));
    let declared = || {
        let is_declared = kind == Kind::Html || body.trim_ascii_start().starts_with(b"<?xml");
        is_declared.then(|| declared_in(&body[..body.len().min(META_BYTES)])).flatten()
    };
    let guessed = || match std::str::from_utf8(body) {
        // One that was cut may end within a letter.
        Err(error) if error.error_len().is_some() => WINDOWS_1252,
        Ok(_) | Err(_) => UTF_8,
    };
    let marked = Encoding::for_bom(body).map(|(encoding, _)| encoding);
    marked.or_else(named).or_else(declared).unwrap_or_else(guessed)
}

fn declared_in(head: &[u8]) -> Option<&'static Encoding> {
    let encoding = charset_in(head).or_else(|| label_after(head, b"encoding="))?;
    // Whoever could read the declaration in single bytes does not use two (the HTML standard).
    Some(if encoding == encoding_rs::UTF_16LE || encoding == encoding_rs::UTF_16BE {
        UTF_8
    } else {
        encoding
    })
}

fn charset_in(text: &[u8]) -> Option<&'static Encoding> {
    label_after(text, b"charset=")
}

fn label_after(text: &[u8], key: &[u8]) -> Option<&'static Encoding> {
    let place = text.windows(key.len()).position(|window| window.eq_ignore_ascii_case(key))?;
    let label = text[place + key.len()..].trim_ascii_start();
    let label = label.strip_prefix(b"\"").or_else(|| label.strip_prefix(b"'")).unwrap_or(label);
    let end = label.iter().position(|byte| b"\"' ;>/?\t\r\n".contains(byte)).unwrap_or(label.len());
    Encoding::for_label(&label[..end])
}

/// Without control characters, and with one kind of line end.
fn printable(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.chars().filter(|sign| !sign.is_control() || matches!(sign, '\n' | '\t')).collect()
}

/// The beginning of a text, with a word about the rest. The limit is for the text itself.
fn shortened(mut text: String, limit: usize, is_cut: bool) -> String {
    let is_long = text.len() > limit;
    text.truncate(text.floor_char_boundary(limit));
    if is_long || is_cut {
        text.push_str("\n\n[The page goes on; the rest was cut off.]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(content_type: Option<&str>, body: &[u8]) -> Page {
        Page {
            url: Url::parse("https://example.com/dir/page.html").expect("a URL"),
            content_type: content_type.map(str::to_owned),
            kind: kind_of(content_type, body).expect("readable"),
            body: body.to_vec(),
            end: End::Whole,
        }
    }

    fn text(page: Page, tokens_max: Option<u64>) -> String {
        match content(page, tokens_max).expect("readable").remove(0) {
            Content::Document { source: Source::Text { media_type: _, data }, .. } => data,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_read_in_its_own_encoding() {
        let latin = b"caf\xe9 \x80";
        for (content_type, body, expected) in [
            (Some("text/plain; charset=utf-8"), "café".as_bytes().to_vec(), "café"),
            (Some("text/plain; charset=\"ISO-8859-1\""), latin.to_vec(), "café €"),
            (Some("text/plain"), latin.to_vec(), "café €"),
            (None, "größer".as_bytes().to_vec(), "größer"),
            (Some("text/plain; charset=nonsense"), "größer".as_bytes().to_vec(), "größer"),
            (Some("text/plain; charset=utf-8"), [b"\xff\xfe".as_slice(), b"h\0i\0"].concat(), "hi"),
            (Some("text/plain; charset=Shift_JIS"), b"\x93\xfa\x96{".to_vec(), "日本"),
            (Some("text/html"), b"<meta charset=windows-1251><p>\xcf\xf0\xe8".to_vec(), "При"),
            (
                Some("text/html"),
                b"<meta http-equiv='Content-Type' content='text/html; charset=koi8-r'>\xf0".to_vec(),
                "П",
            ),
            (Some("text/html"), b"<meta charset='utf-16'><p>caf\xc3\xa9".to_vec(), "café"),
            (
                Some("application/rss+xml"),
                b"<?xml version='1.0' encoding='iso-8859-1'?>\xe9".to_vec(),
                "<?xml version='1.0' encoding='iso-8859-1'?>é",
            ),
            (Some("text/plain; charset=utf-8"), latin.to_vec(), "caf\u{fffd} \u{fffd}"),
        ] {
            assert_eq!(text(page(content_type, &body), None), expected, "{content_type:?}");
        }
    }

    #[test]
    fn the_kind_is_what_the_response_says_or_else_what_it_looks_like() {
        for (content_type, head, kind) in [
            (Some("Text/HTML; charset=x"), "", Some(Kind::Html)),
            (Some("application/pdf"), "", Some(Kind::Pdf)),
            (Some("application/ld+json"), "", Some(Kind::Text)),
            (Some("text/css"), "", Some(Kind::Text)),
            (Some("image/png"), "", None),
            (Some("application/zip"), "", None),
            (None, " <!DOCTYPE html><p>", Some(Kind::Html)),
            (None, "%PDF-1.7", Some(Kind::Pdf)),
            (Some("application/octet-stream"), "plain", Some(Kind::Text)),
            (Some("application/octet-stream"), "\0\u{1}", None),
        ] {
            assert_eq!(kind_of(content_type, head.as_bytes()), kind, "{content_type:?} {head:?}");
        }
    }

    #[test]
    fn text_is_cut_to_its_limit_and_says_so() {
        let long = "äöü ".repeat(100_000);
        let cut = "\n\n[The page goes on; the rest was cut off.]";
        let given = text(page(Some("text/plain"), long.as_bytes()), None);
        assert!(given.ends_with(cut) && given.len() <= TEXT_BYTES_DEFAULT + cut.len());
        let given = text(page(Some("text/plain"), long.as_bytes()), Some(2));
        assert_eq!(given, format!("äöü {cut}"), "two tokens are eight bytes");
        let given = text(page(Some("text/plain"), long.as_bytes()), Some(u64::MAX));
        assert!(given.len() <= TEXT_BYTES_MAX + cut.len());
        assert_eq!(text(page(Some("text/plain"), b"short"), Some(1000)), "short");
        let cut_off = Page { end: End::Cut, ..page(Some("text/plain"), b"short") };
        assert_eq!(text(cut_off, None), format!("short{cut}"));
        assert_eq!(text(page(Some("text/html"), b"<script>x</script>"), None), "(the page has no text)");
    }

    #[test]
    fn what_only_claims_to_be_text_or_a_pdf_is_refused() {
        for (content_type, body) in [
            ("text/plain", b"\x7fELF\0\0".as_slice()),
            ("application/pdf", b"<html>"),
            ("application/pdf", b"%PDF-1.7 cut"),
        ] {
            let failure = content(page(Some(content_type), body), None).expect_err("refused");
            assert_eq!(failure.code, Code::UnsupportedContentType, "{failure}");
        }
        let pdf = content(page(Some("application/pdf"), b"%PDF-1.7 ... %%EOF\n"), Some(1)).expect("a PDF");
        let [Content::Document { source: Source::Base64 { media_type, data }, title, .. }] = pdf.as_slice()
        else {
            panic!("{pdf:?}")
        };
        assert_eq!((media_type.as_str(), title.as_deref()), ("application/pdf", Some("page.html")));
        assert_eq!(STANDARD.decode(data).expect("base64"), b"%PDF-1.7 ... %%EOF\n");
        let large = Page { end: End::Cut, ..page(Some("application/pdf"), b"%PDF-1.7") };
        assert_eq!(content(large, None).expect_err("refused").code, Code::ContentTooLarge);
    }

    #[test]
    fn control_characters_do_not_reach_the_log() {
        assert_eq!(text(page(Some("text/plain"), b"a\x1b[31mb\r\nc\td\x07"), None), "a[31mb\nc\td");
    }
}
