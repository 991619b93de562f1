//! A web page as text that a model can read.
//!
//! Two steps. First the page's tokens (html5ever's tokenizer: linear, without recursion) become a small document of
//! paragraphs, headings, lists, quotes, code and links, well nested and bounded in depth and size, with addresses made
//! absolute; table rows become lines. Then `htmd` makes Markdown of it. A browser's tree builder and a converter that
//! walks its tree would do on an honest page; on a hostile one they take quadratic time (a million open elements),
//! unbounded memory (formatting that is opened again in each paragraph, one wide table cell that pads a million others)
//! or the thread's stack. What they are given here is none of that, whatever the page was.
//!
//! Scripts are not run, and what is hidden by style is not told apart from what is shown.

use std::cell::RefCell;

use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use reqwest::Url;

/// How much larger than the text that is wanted the small document may get: tags and entities take room, too. What is
/// beyond it would be cut off anyway.
const DOCUMENT_BYTES_PER_BYTE: usize = 4;
/// A short text may be mostly tags.
const DOCUMENT_BYTES_MIN: usize = 16 << 10;
/// How deep lists and quotes may be nested. Each level indents every line within it, so depth multiplies the text.
const NESTING_MAX: usize = 8;
/// An address that is longer says nothing to a reader, and could not be fetched.
const HREF_BYTES_MAX: usize = 2_048;
/// The longest tag that is looked at. It has room for any link; what is longer holds data for scripts.
const TAG_BYTES_MAX: usize = 4 << 10;
/// A title is a line.
const TITLE_CHARS_MAX: usize = 300;

/// What was made of a page.
#[derive(Debug)]
pub(super) struct Readable {
    pub(super) title: Option<String>,
    pub(super) text: String,
    /// The page went on; what would not fit was left out.
    pub(super) is_cut: bool,
}

/// The readable text of a page that was found at `base`, of which so many bytes are wanted; it may be several times as
/// long. Takes time and memory in proportion to the page, so it is for a thread that may be busy for a while.
pub(super) fn readable(html: &str, base: &Url, wanted_bytes: usize) -> Readable {
    let Writer { out, title, is_full, .. } = tokenized(html, base, wanted_bytes);
    let options = htmd::options::Options {
        bullet_list_marker: htmd::options::BulletListMarker::Dash,
        ul_bullet_spacing: 1,
        ol_number_spacing: 1,
        ..htmd::options::Options::default()
    };
    let converter = htmd::HtmlToMarkdown::builder().options(options).build();
    // It reads from memory, and so has no reason to fail.
    let text = converter.convert(&out).unwrap_or_default();
    Readable { title: title.filter(|title| !title.is_empty()), text, is_cut: is_full }
}

/// The text of a fragment in which tags and entities may occur, on one line: what search providers send.
pub(super) fn plain(fragment: &str) -> String {
    let nowhere = Url::parse("http://localhost/").expect("a constant that parses");
    let Writer { out, .. } = tokenized(fragment, &nowhere, fragment.len());
    // Of what is written, tags are all between these signs, and the text has none of them.
    let mut text = String::with_capacity(out.len());
    let mut rest = out.as_str();
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let (tag, after) = tag.split_once('>').unwrap_or((tag, ""));
        if matches!(tag, "/p" | "br" | "/li" | "hr") {
            text.push(' ');
        }
        rest = after;
    }
    text.push_str(rest);
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn tokenized(html: &str, base: &Url, wanted_bytes: usize) -> Writer {
    let limit = wanted_bytes.saturating_mul(DOCUMENT_BYTES_PER_BYTE).max(DOCUMENT_BYTES_MIN);
    let sink = Sink(RefCell::new(Writer::new(base.clone(), limit)));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    feed(&tokenizer, html);
    tokenizer.end();
    let mut writer = tokenizer.sink.0.into_inner();
    writer.close_to(0);
    writer
}

/// Gives the tokenizer the page without the tags that are too long for it. It compares each attribute of a tag with all
/// before, and needs minutes for a tag of megabytes.
fn feed(tokenizer: &Tokenizer<Sink>, html: &str) {
    let feed = |piece: &str| {
        let input = BufferQueue::default();
        input.push_back(StrTendril::from_slice(piece));
        // A sink that has no scripts to run never interrupts.
        let _ = tokenizer.feed(&input);
    };
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        feed(&rest[..start]);
        rest = &rest[start..];
        // What is fed up to here tells where the tokenizer is: in text, or in an element that holds no tags.
        let raw = tokenizer.sink.0.borrow().raw.clone();
        if tokenizer.sink.0.borrow().is_full {
            return;
        }
        let is_raw_end = |raw: &str| {
            let name = rest.strip_prefix("</").and_then(|rest| rest.get(..raw.len()));
            name.is_some_and(|name| name.eq_ignore_ascii_case(raw))
        };
        let end = match &raw {
            Some(raw) if !is_raw_end(raw) => 1,
            _ => construct_end(rest),
        };
        let (construct, after) = rest.split_at(end);
        let is_tag =
            construct[1..].trim_start_matches('/').starts_with(|sign: char| sign.is_ascii_alphabetic());
        match raw {
            _ if !is_tag || construct.len() <= TAG_BYTES_MAX => feed(construct),
            Some(raw) => feed(&format!("</{raw}>")),
            None => {}
        }
        rest = after;
    }
    feed(rest);
}

/// Where the tag or comment ends that the text begins with. The whole text, if it does not end.
fn construct_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    if text.starts_with("<!--") {
        let mut dashes = text.match_indices('-').skip_while(|(place, _)| *place < 2);
        let end = dashes.find_map(|(place, _)| {
            let end = ["-->", "--!>"].into_iter().find(|end| text[place..].starts_with(end))?;
            Some(place + end.len())
        });
        return end.unwrap_or(bytes.len());
    }
    let name = text.strip_prefix("</").or_else(|| text.strip_prefix('<')).unwrap_or_default();
    if !name.starts_with(|sign: char| sign.is_ascii_alphabetic()) {
        // Something that is skipped up to the next `>`, or just a sign.
        let is_skipped = ["<!", "<?", "</"].iter().any(|start| text.starts_with(start));
        return if is_skipped { text.find('>').map_or(bytes.len(), |place| place + 1) } else { 1 };
    }
    // A quote means something only where a value begins.
    let mut quote = None;
    let mut previous = b' ';
    for (index, byte) in bytes.iter().copied().enumerate() {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => continue,
            (None, b'>') => return index + 1,
            (None, b'"' | b'\'') if previous == b'=' => quote = Some(byte),
            (None, _) => {}
        }
        if !byte.is_ascii_whitespace() {
            previous = byte;
        }
    }
    bytes.len()
}

struct Sink(RefCell<Writer>);

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        let mut writer = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) => match tag.kind {
                TagKind::StartTag => return writer.start(&tag),
                TagKind::EndTag => writer.end(&tag.name),
            },
            Token::CharacterTokens(text) => writer.text(&text),
            Token::DoctypeToken(_)
            | Token::CommentToken(_)
            | Token::NullCharacterToken
            | Token::EOFToken
            | Token::ParseError(_) => {}
        }
        TokenSinkResult::Continue
    }
}

/// An element of the small document that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Paragraph,
    Heading(u8),
    List,
    OrderedList,
    Item,
    Quote,
    Preformatted,
    Link,
    Strong,
    Emphasis,
    Code,
}

impl Open {
    fn closing(self) -> &'static str {
        match self {
            Self::Paragraph => "</p>",
            Self::Heading(level) => {
                ["</h1>", "</h2>", "</h3>", "</h4>", "</h5>", "</h6>"][usize::from(level) - 1]
            }
            Self::List => "</ul>",
            Self::OrderedList => "</ol>",
            Self::Item => "</li>",
            Self::Quote => "</blockquote>",
            Self::Preformatted => "</code></pre>",
            Self::Link => "</a>",
            Self::Strong => "</strong>",
            Self::Emphasis => "</em>",
            Self::Code => "</code>",
        }
    }

    /// Whether blocks may stand in it.
    fn is_container(self) -> bool {
        matches!(self, Self::List | Self::OrderedList | Self::Item | Self::Quote)
    }

    fn is_inline(self) -> bool {
        matches!(self, Self::Link | Self::Strong | Self::Emphasis | Self::Code)
    }
}

/// Writes the small document.
struct Writer {
    out: String,
    out_bytes_max: usize,
    is_full: bool,
    base: Url,
    title: Option<String>,
    in_title: bool,
    /// The open element in which there are no tags but its end.
    raw: Option<String>,
    /// The element whose content is dropped, and how many of its name are open.
    skipped: Option<(String, u32)>,
    /// Well nested: containers, then at most one paragraph, heading or preformatted block, then inline elements, each
    /// at most once. So it is never deeper than the containers may be plus a handful.
    open: Vec<Open>,
    /// Lists and quotes that are too deep to be shown, by kind, so that their ends close nothing else.
    hidden: [u32; 3],
    /// Something stands between what was written and what comes: it is on a new line.
    owes_break: bool,
    owes_space: bool,
    /// In a table's row: how many cells it has had.
    cells: Option<u32>,
}

impl Writer {
    fn new(base: Url, out_bytes_max: usize) -> Self {
        Self {
            out: String::new(),
            out_bytes_max,
            is_full: false,
            base,
            title: None,
            in_title: false,
            raw: None,
            skipped: None,
            open: Vec::new(),
            hidden: [0; 3],
            owes_break: false,
            owes_space: false,
            cells: None,
        }
    }

    fn start(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name: &str = &tag.name;
        let raw = match name {
            "script" => Some(RawKind::ScriptData),
            "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(RawKind::Rawtext),
            "title" | "textarea" => Some(RawKind::Rcdata),
            _ => None,
        };
        self.raw = raw.map(|_| name.to_owned());
        if let Some((skipped, depth)) = &mut self.skipped {
            *depth += u32::from(skipped == name && !tag.self_closing);
            return raw.map_or(TokenSinkResult::Continue, TokenSinkResult::RawData);
        }
        match name {
            "script" | "style" | "iframe" | "noembed" | "noframes" | "textarea" => {
                self.skipped = Some((name.to_owned(), 1));
            }
            "template" | "svg" | "select" | "datalist" if !tag.self_closing => {
                self.skipped = Some((name.to_owned(), 1));
            }
            "title" => self.in_title = self.title.is_none(),
            "base" => self.rebase(tag),
            "a" => self.start_link(tag),
            "b" | "strong" => self.start_inline(Open::Strong, "<strong>"),
            "i" | "em" | "cite" => self.start_inline(Open::Emphasis, "<em>"),
            "code" | "kbd" | "samp" | "tt" => self.start_inline(Open::Code, "<code>"),
            "img" => self.image(tag),
            "br" => self.line_break(),
            "hr" => {
                self.end_blocks();
                self.write("<hr>");
            }
            "p" => self.paragraph_ends(),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self.start_heading(name),
            "ul" | "menu" | "dir" => self.start_container(Open::List, "<ul>"),
            "ol" => self.start_container(Open::OrderedList, "<ol>"),
            "blockquote" => self.start_container(Open::Quote, "<blockquote>"),
            "li" => self.start_item(),
            "pre" | "xmp" | "listing" => self.start_preformatted(),
            "table" | "caption" => {
                self.end_blocks();
                self.cells = None;
            }
            "tr" => {
                self.end_blocks();
                self.cells = Some(0);
            }
            "td" | "th" => self.start_cell(),
            name if is_block(name) => self.block_ends(),
            _ => {}
        }
        raw.map_or(TokenSinkResult::Continue, TokenSinkResult::RawData)
    }

    fn end(&mut self, name: &str) {
        self.raw = None;
        if let Some((skipped, depth)) = &mut self.skipped {
            if skipped == name {
                *depth -= 1;
                if *depth == 0 {
                    self.skipped = None;
                }
            }
            return;
        }
        match name {
            "title" => self.in_title = false,
            "a" => self.end_inline(Open::Link),
            "b" | "strong" => self.end_inline(Open::Strong),
            "i" | "em" | "cite" => self.end_inline(Open::Emphasis),
            "code" | "kbd" | "samp" | "tt" => self.end_inline(Open::Code),
            "br" => self.line_break(),
            "p" => self.paragraph_ends(),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                if let Some(index) = self.open.iter().position(|open| matches!(open, Open::Heading(_))) {
                    self.close_to(index);
                }
            }
            "ul" | "menu" | "dir" => self.end_container(Open::List),
            "ol" => self.end_container(Open::OrderedList),
            "blockquote" => self.end_container(Open::Quote),
            "pre" | "xmp" | "listing" => {
                if let Some(index) = self.open.iter().position(|open| *open == Open::Preformatted) {
                    self.close_to(index);
                }
            }
            "table" | "tr" => {
                self.end_blocks();
                self.cells = None;
            }
            "li" => self.end_blocks(),
            name if is_block(name) => self.block_ends(),
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        if self.skipped.is_some() {
            return;
        }
        if self.in_title {
            let title = self.title.get_or_insert_default();
            let rest = TITLE_CHARS_MAX.saturating_sub(title.chars().count());
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !words.is_empty() && !title.is_empty() {
                title.push(' ');
            }
            title.extend(words.chars().filter(|sign| !sign.is_control()).take(rest));
            return;
        }
        if self.open.last() == Some(&Open::Preformatted) {
            self.escape(text);
            return;
        }
        let mut words = text.split_whitespace().peekable();
        if words.peek().is_none() {
            self.owes_space |= !text.is_empty();
            return;
        }
        self.owes_space |= text.starts_with(char::is_whitespace);
        self.open_paragraph();
        while let Some(word) = words.next() {
            self.escape(word);
            if words.peek().is_some() {
                self.write(" ");
            }
        }
        self.owes_space = text.ends_with(char::is_whitespace);
    }

    /// Makes sure that text may be written, and writes what stands between it and what came before.
    fn open_paragraph(&mut self) {
        match self.open.last() {
            None | Some(Open::Quote | Open::List | Open::OrderedList) => {
                self.write("<p>");
                self.open.push(Open::Paragraph);
            }
            Some(_) if self.owes_break => self.write("<br>"),
            Some(_) if self.owes_space && !self.out.ends_with("<p>") => self.write(" "),
            Some(_) => {}
        }
        (self.owes_break, self.owes_space) = (false, false);
    }

    /// A paragraph begins or ends.
    fn paragraph_ends(&mut self) {
        if self.is_in_row() {
            self.owes_break = true;
        } else {
            self.block_ends();
        }
    }

    /// Something begins or ends that stands on lines of its own.
    fn block_ends(&mut self) {
        let is_open = |wanted: Open| self.open.contains(&wanted);
        if is_open(Open::Preformatted) {
            if !self.out.ends_with('\n') && !self.out.ends_with("<code>") {
                self.write("\n");
            }
        } else if is_open(Open::Link)
            || self.open.iter().any(|open| matches!(open, Open::Heading(_)))
            || self.is_in_row()
        {
            self.owes_space = true;
        } else {
            self.end_blocks();
        }
    }

    fn is_in_row(&self) -> bool {
        self.cells.is_some()
    }

    /// Closes what cannot hold blocks.
    fn end_blocks(&mut self) {
        let keeps = self.open.iter().rposition(|open| open.is_container()).map_or(0, |last| last + 1);
        self.close_to(keeps);
        self.owes_space = false;
        self.owes_break = self.open.last() == Some(&Open::Item) && !self.out.ends_with("<li>");
    }

    fn close_to(&mut self, count: usize) {
        while self.open.len() > count
            && let Some(open) = self.open.pop()
        {
            // Room for it was kept, so that the document stays well nested.
            self.out.push_str(open.closing());
        }
    }

    fn start_heading(&mut self, name: &str) {
        if self.open.contains(&Open::Link) || self.open.contains(&Open::Preformatted) {
            return self.block_ends();
        }
        self.end_blocks();
        self.cells = None;
        let level = name.as_bytes()[1] - b'0';
        self.write(&format!("<{name}>"));
        self.open.push(Open::Heading(level));
        self.owes_break = false;
    }

    fn start_preformatted(&mut self) {
        if self.open.contains(&Open::Preformatted) {
            return;
        }
        self.end_blocks();
        self.cells = None;
        self.write("<pre><code>");
        self.open.push(Open::Preformatted);
        self.owes_break = false;
    }

    fn hidden(&mut self, kind: Open) -> &mut u32 {
        let index = match kind {
            Open::List => 0,
            Open::OrderedList => 1,
            _ => 2,
        };
        &mut self.hidden[index]
    }

    fn start_container(&mut self, kind: Open, tag: &str) {
        self.end_blocks();
        self.cells = None;
        let depth = self.open.iter().filter(|open| open.is_container() && **open != Open::Item).count();
        if depth >= NESTING_MAX {
            *self.hidden(kind) += 1;
            return;
        }
        self.write(tag);
        self.open.push(kind);
        self.owes_break = false;
    }

    fn end_container(&mut self, kind: Open) {
        self.end_blocks();
        if *self.hidden(kind) > 0 {
            *self.hidden(kind) -= 1;
        } else if let Some(index) = self.open.iter().rposition(|open| *open == kind) {
            self.close_to(index);
            self.owes_break = self.open.last() == Some(&Open::Item);
        }
    }

    fn start_item(&mut self) {
        self.end_blocks();
        self.cells = None;
        let list = self.open.iter().rposition(|open| matches!(open, Open::List | Open::OrderedList));
        let Some(list) = list else { return };
        if self.hidden[0] + self.hidden[1] > 0 {
            // An item of a list that is too deep: a line of the one that is shown.
            return;
        }
        self.close_to(list + 1);
        self.write("<li>");
        self.open.push(Open::Item);
        (self.owes_break, self.owes_space) = (false, false);
    }

    fn start_cell(&mut self) {
        let Some(cells) = self.cells else { return self.block_ends() };
        self.cells = Some(cells.saturating_add(1));
        self.close_inline();
        if cells > 0 {
            (self.owes_break, self.owes_space) = (false, true);
            self.open_paragraph();
            self.write("| ");
        }
    }

    fn close_inline(&mut self) {
        let keeps = self.open.iter().rposition(|open| !open.is_inline()).map_or(0, |last| last + 1);
        self.close_to(keeps);
    }

    fn start_link(&mut self, tag: &Tag) {
        self.end_inline(Open::Link);
        if self.open.contains(&Open::Preformatted) {
            return;
        }
        let Some(url) = attribute(tag, "href").and_then(|href| self.absolute(href)) else { return };
        self.open_paragraph();
        self.write("<a href=\"");
        self.escape(&url);
        self.write("\">");
        self.open.push(Open::Link);
    }

    fn start_inline(&mut self, kind: Open, tag: &str) {
        if self.open.contains(&kind)
            || self.open.contains(&Open::Preformatted)
            || self.open.contains(&Open::Code)
        {
            return;
        }
        self.open_paragraph();
        if self.out.ends_with(kind.closing()) && kind != Open::Code {
            // Two that touch are one.
            self.out.truncate(self.out.len() - kind.closing().len());
        } else {
            self.write(tag);
        }
        self.open.push(kind);
    }

    fn end_inline(&mut self, kind: Open) {
        if let Some(index) = self.open.iter().rposition(|open| *open == kind) {
            self.close_to(index);
        }
    }

    fn image(&mut self, tag: &Tag) {
        let alt = attribute(tag, "alt").unwrap_or_default().trim();
        let url = attribute(tag, "src").and_then(|src| self.absolute(src));
        if alt.is_empty() || self.open.contains(&Open::Preformatted) || self.open.contains(&Open::Code) {
            return;
        }
        self.open_paragraph();
        match url {
            Some(url) => {
                self.write("<img src=\"");
                self.escape(&url);
                self.write("\" alt=\"");
                self.escape(alt);
                self.write("\">");
            }
            None => self.escape(alt),
        }
    }

    fn line_break(&mut self) {
        if self.open.contains(&Open::Preformatted) {
            self.write("\n");
        } else if self.open.contains(&Open::Link)
            || self.open.iter().any(|open| matches!(open, Open::Heading(_)))
        {
            self.owes_space = true;
        } else if !self.open.is_empty() {
            self.owes_break = true;
        }
    }

    fn rebase(&mut self, tag: &Tag) {
        let base = attribute(tag, "href").and_then(|href| self.base.join(href).ok());
        if let Some(base) = base.filter(|base| matches!(base.scheme(), "http" | "https")) {
            self.base = base;
        }
    }

    /// An address that leads to another page, in the form in which it may be fetched.
    fn absolute(&self, href: &str) -> Option<String> {
        let href = href.trim();
        if href.is_empty() || href.starts_with('#') || href.len() > HREF_BYTES_MAX {
            return None;
        }
        let url = self.base.join(href).ok()?;
        let is_page =
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        // Written so, Markdown leaves them as they are.
        let text = url.as_str().replace('(', "%28").replace(')', "%29");
        (is_page && text.len() <= HREF_BYTES_MAX).then_some(text)
    }

    /// Writes text, without what no reader sees.
    fn escape(&mut self, text: &str) {
        for sign in text.chars() {
            match sign {
                '&' => self.write("&amp;"),
                '<' => self.write("&lt;"),
                '>' => self.write("&gt;"),
                '"' => self.write("&quot;"),
                '\n' | '\t' => self.write(sign.encode_utf8(&mut [0; 4])),
                sign if sign.is_control() => {}
                sign => self.write(sign.encode_utf8(&mut [0; 4])),
            }
        }
    }

    fn write(&mut self, text: &str) {
        if self.is_full || self.out.len() + text.len() > self.out_bytes_max {
            self.is_full = true;
        } else {
            self.out.push_str(text);
        }
    }
}

fn attribute<'a>(tag: &'a Tag, name: &str) -> Option<&'a str> {
    tag.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| &*attribute.value)
}

/// The elements that stand on lines of their own and mean nothing more here.
fn is_block(name: &str) -> bool {
    const NAMES: [&str; 32] = [
        "address",
        "article",
        "aside",
        "body",
        "button",
        "center",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "head",
        "header",
        "hgroup",
        "html",
        "legend",
        "main",
        "nav",
        "optgroup",
        "option",
        "search",
        "section",
        "summary",
        "tbody",
        "tfoot",
        "thead",
    ];
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most that is ever wanted.
    const WANTED: usize = super::super::page::TEXT_BYTES_MAX;

    fn base() -> Url {
        Url::parse("https://example.com/dir/page.html").expect("a URL")
    }

    fn text(html: &str) -> String {
        readable(html, &base(), WANTED).text
    }

    #[test]
    fn a_page_becomes_markdown_with_whole_addresses() {
        let page = readable(
            "<!doctype html><html><head><title> A \n page </title><style>p{}</style><script>1<2</script></head><body>\
             <nav><a href='/'>Home</a></nav><h1>Top <em>news</em></h1><p>One &amp; <b>two</b>,<br>three.\
             <p>See <a href='other.html#x'>the <i>other</i> page</a> or <a href='mailto:a@b'>write</a>.</p>\
             <ul><li>first<li><p>second</p><p>more</p><ol><li>deep</ol></ul>\
             <blockquote>quoted<p>twice</blockquote><pre>a\n  <span>b</span></pre>\
             <p>Use <code>x_y</code>.</p><img src=a.png alt='A picture'><hr>\
             <table><tr><th>Name<th>Age<tr><td><a href=//o.test/q?a=1&b=(2)>Ann</a><td><div>7</div></table>\
             <svg><title>no</title><text>no</text></svg><textarea>no</textarea></body></html>",
            &base(),
            WANTED,
        );
        assert_eq!(page.title.as_deref(), Some("A page"));
        let expected = "[Home](https://example.com/)\n\n# Top *news*\n\nOne & **two**,  \nthree.\n\n\
            See [the *other* page](https://example.com/dir/other.html#x) or write.\n\n\
            - first\n- second\n  more\n  1. deep\n\n> quoted\n> \n> twice\n\n```\na\n  b\n```\n\nUse `x_y`.\n\n\
            ![A picture](https://example.com/dir/a.png)\n\n* * *\n\nName | Age\n\n\
            [Ann](https://o.test/q?a=1&b=%282%29) | 7";
        assert_eq!(page.text, expected);
        assert!(!page.is_cut);
    }

    #[test]
    fn a_link_around_blocks_is_one_link_and_what_is_never_closed_ends_with_its_block() {
        assert_eq!(
            text("<a href=/x><div><h3>Title</h3><p>About it</p></div></a><p>after"),
            "[Title About it](https://example.com/x)\n\nafter"
        );
        assert_eq!(text("<p><b>bold<p>plain"), "**bold**\n\nplain");
        assert_eq!(text("<b>a</b><b>b</b>"), "**ab**");
        assert_eq!(text("</p></ul></b></a>x</h1>"), "x");
        assert_eq!(text("a<select><option>no</select> b<template>no</template>"), "a b");
        assert_eq!(text("<base href='https://b.test/z/'><a href=q>q</a>"), "[q](https://b.test/z/q)");
        assert_eq!(text("<a href='javascript:alert(1)'>x</a><a href='data:text/html,x'>y</a>"), "xy");
    }

    #[test]
    fn plain_text_of_a_fragment_is_one_line() {
        assert_eq!(
            plain("Tom &amp; <b>Jerry</b>&#39;s<br>\n <i>\"5 &lt; 6\"</i>"),
            "Tom & Jerry's \"5 < 6\""
        );
        assert_eq!(plain(""), "");
        assert_eq!(plain("&"), "&");
    }

    #[test]
    fn tags_that_are_too_long_are_left_out_and_nothing_else_is() {
        let long = "y".repeat(5_000);
        for (html, expected) in [
            (format!("a<img alt=pic src='data:{long}'>b"), "ab"),
            (format!("a<div data-x='>{long}' >b</div>c"), "ab\n\nc"),
            (format!("a<script>if (a<b) {{ x = \"{long}\" }}</script>b"), "ab"),
            (format!("a<script>x</script data='{long}'>b"), "ab"),
            (format!("a<!-- <p {long}> -->b"), "ab"),
            ("a<!-->b<!--->c<!-- x --!>d".to_owned(), "abcd"),
            ("1 < 2 and a<b>c</b> <3 </ d>e<?x y?>f<![CDATA[z]]>g".to_owned(), "1 < 2 and a**c** <3 efg"),
            ("a<b title=\"x>y\">c</b><i title=x\"y>z</i>".to_owned(), "a**c***z*"),
            ("<title>a < b <i></title>c".to_owned(), "c"),
        ] {
            assert_eq!(text(&html), expected, "{}", html.chars().take(40).collect::<String>());
        }
    }

    /// What a browser's tree builder, or a converter that walks its tree, would take for ever, or all memory, or all of
    /// the stack to do. Run on a small stack, as on a thread of the server's.
    #[test]
    fn hostile_pages_are_converted_in_bounded_time_and_room() {
        let mega = 1 << 18;
        let repeated = |piece: &str, size: usize| piece.repeat(size / piece.len());
        let numbered =
            |from: &str, to: &str| (0..20_000).map(|n| format!("{from}{n}{to}")).collect::<String>();
        let pages = [
            repeated("<div>", mega),
            repeated("<p>", mega),
            repeated("<blockquote>", mega) + "deep",
            repeated("<ul><li>", mega) + "deep",
            repeated("<ol><li>x", mega / 2),
            repeated("<b><i><a href=x>", mega / 2) + "x",
            numbered("<b id=", ">") + &repeated("<p>x", mega),
            numbered("<font size=", "><b>") + &repeated("<p>x</b>", mega),
            format!("<table><tr><th>{}", "w".repeat(mega)) + &repeated("<tr><td>x", mega),
            repeated("<table><tr><td>", mega) + "deep",
            repeated("<b>x</b>", mega / 2),
            repeated("<i>x</i> ", mega / 2),
            repeated("<code>x</code>", mega / 2),
            repeated("</div>", mega),
            repeated("<", mega / 2),
            repeated("&#x41;&amp&", mega / 2),
            format!("<a href=\"{}\">x</a>", "y".repeat(mega / 2)),
            format!("<p {}>x", numbered("a", "=1 ")),
            format!("<script></script {}>x", numbered("a", "=1 ")),
            format!("<!--<p {}>x", numbered("a", "=1 ")),
            format!("<p title='>' {}>x", numbered("a", "='>' ")),
            repeated("<blockquote>", 96) + "<pre>" + &"\n".repeat(mega),
            repeated("<ul><li>", 64) + &repeated("x<br>", mega),
            repeated("<svg>", mega),
            repeated("<select>", mega),
            repeated("<li>x", mega / 2),
            repeated("<h1>x<h2>", mega / 2),
            repeated("*_[`", mega / 2),
            format!("<!--{}", "-".repeat(mega)),
            repeated("<!---->", mega),
            repeated("<!--", mega),
            format!("<title>{}", "t ".repeat(mega)),
            "\0".repeat(mega),
        ];
        for page in pages {
            let what: String = page.chars().take(24).collect();
            let converting = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
                let readable = readable(&page, &base(), WANTED);
                readable.text.len()
            });
            let length = converting.expect("a thread").join().expect("no panic");
            assert!(length <= 64 * mega, "{what}: {length} bytes");
        }
    }
}
