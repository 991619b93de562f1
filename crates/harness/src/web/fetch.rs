//! Fetching a page: redirects one by one, each address checked, everything bounded.
//!
//! What a name leads to is for the guarded client to check, which refuses hosts that are not public. It follows no redirect
//! by itself, as the agent's lists hold for each address on the way.

use std::io::Write as _;

use egress::{Client, Refusal};
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, USER_AGENT,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::domains::Domains;
use super::failure::{Code, Failure};
use super::page::{End, Kind, PAGE_BYTES_MAX, PDF_BYTES_MAX, Page, kind_of};

/// How the server names itself to the sites that it fetches from.
pub(super) const AGENT: &str = concat!("Posthouse/", env!("CARGO_PKG_VERSION"));
/// The longest address that is fetched, in bytes. Longer ones are hardly ever read, and could carry a lot away.
const URL_BYTES_MAX: usize = 2_048;
/// How often a page may send us on: half of what browsers allow.
const REDIRECTS_MAX: usize = 10;
/// How much of a body must be there before its kind is guessed.
const HEAD_BYTES: usize = 1_024;

/// An address that a model wants fetched, as far as its form goes.
pub(super) fn address(text: &str) -> Result<Url, Failure> {
    if text.len() > URL_BYTES_MAX {
        let detail = format!("the URL has {} bytes, and at most {URL_BYTES_MAX} are taken", text.len());
        return Err(Failure::new(Code::UrlTooLong, detail));
    }
    let invalid = |detail: &str| Failure::new(Code::InvalidToolInput, detail);
    let url = Url::parse(text.trim())
        .map_err(|_| invalid("`url` must be a whole URL, such as https://example.com/"))?;
    check_form(&url).map_err(invalid)?;
    Ok(url)
}

fn check_form(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the URL must begin with http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not hold credentials");
    }
    Ok(())
}

/// Refuses an address that the agent's lists do not let through.
pub(super) fn check_domain(url: &Url, domains: Domains<'_>) -> Result<(), Failure> {
    if domains.permit(url) {
        return Ok(());
    }
    let host = url.host_str().unwrap_or_default();
    Err(Failure::new(Code::UrlNotAllowed, format!("the agent's settings do not allow fetching from {host}")))
}

/// Fetches the page. The time is for the caller to bound.
pub(super) async fn fetch(client: &Client, url: Url, domains: Domains<'_>) -> Result<Page, Failure> {
    let mut url = url;
    for _ in 0..=REDIRECTS_MAX {
        check_domain(&url, domains)?;
        let request = client
            .request(Method::GET, url.clone())
            .map_err(|refusal| refused(&refusal))?
            .header(USER_AGENT, AGENT)
            .header(
                ACCEPT,
                "text/html, application/xhtml+xml, text/*;q=0.9, application/pdf;q=0.9, */*;q=0.5",
            )
            .header(ACCEPT_ENCODING, "gzip, deflate");
        let response = request.send().await.map_err(|error| unreachable(&error))?;
        match next_hop(&url, &response)? {
            Some(next) => url = next,
            None => return read(url, response).await,
        }
    }
    Err(Failure::new(Code::UrlNotAccessible, format!("it redirects more than {REDIRECTS_MAX} times")))
}

/// What the guard does not let us reach.
fn refused(refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::Unresolved { .. } | Refusal::LookupTimeout { .. } => Code::UrlNotAccessible,
        Refusal::Host { .. }
        | Refusal::NotAllowed { .. }
        | Refusal::Port { .. }
        | Refusal::Address { .. }
        | Refusal::Url { .. } => Code::UrlNotAllowed,
    };
    Failure::new(code, refusal.to_string())
}

fn unreachable(error: &reqwest::Error) -> Failure {
    Client::refusal(error).map_or_else(|| Failure::unreachable(error), refused)
}

/// Where the response sends us. An error if it holds no page and sends us nowhere.
fn next_hop(url: &Url, response: &Response) -> Result<Option<Url>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(None);
    }
    let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
    if let (true, Some(location)) = (is_redirect, header(response.headers(), LOCATION)) {
        let unusable = |detail: &str| {
            Failure::new(Code::UrlNotAccessible, format!("it redirects to an unusable URL: {detail}"))
        };
        let next = url.join(location).map_err(|_| unusable("it cannot be read"))?;
        check_form(&next).map_err(unusable)?;
        if next.as_str().len() > URL_BYTES_MAX {
            return Err(unusable("it is too long"));
        }
        return Ok(Some(next));
    }
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS => Code::TooManyRequests,
        _ => Code::UrlNotAccessible,
    };
    Err(Failure::new(code, format!("the site answered {status}")))
}

/// Reads the body as far as it is needed, and no further.
async fn read(url: Url, mut response: Response) -> Result<Page, Failure> {
    let content_type = header(response.headers(), CONTENT_TYPE).map(str::to_owned);
    let mut body = Body::new(header(response.headers(), CONTENT_ENCODING))?;
    let mut kind = None;
    let mut received_bytes = 0;
    loop {
        let chunk = response.chunk().await.map_err(|error| Failure::unreachable(&error))?;
        let (is_over, is_broken) = match &chunk {
            None => (true, !body.end(received_bytes)?),
            Some(chunk) => {
                received_bytes += chunk.len();
                // Packed bytes need not stand for anything, so they are counted, too.
                (false, !body.push(chunk)? || received_bytes > PDF_BYTES_MAX)
            }
        };
        if kind.is_none() && (is_over || is_broken || body.bytes().len() >= HEAD_BYTES) {
            kind = Some(known(kind_of(content_type.as_deref(), body.bytes()), content_type.as_deref())?);
        }
        let limit = match kind {
            Some(Kind::Pdf) => PDF_BYTES_MAX,
            Some(Kind::Html | Kind::Text) | None => PAGE_BYTES_MAX,
        };
        let is_cut = is_broken || body.bytes().len() > limit;
        if is_over || is_cut {
            let end = if is_cut { End::Cut } else { End::Whole };
            let mut body = body.finish();
            body.truncate(limit);
            let kind = kind.expect("known at the end, and long before a body is too long");
            return Ok(Page { url, content_type, kind, body, end });
        }
    }
}

fn known(kind: Option<Kind>, content_type: Option<&str>) -> Result<Kind, Failure> {
    kind.ok_or_else(|| {
        let what: String = content_type.unwrap_or("binary data").chars().take(100).collect();
        Failure::new(
            Code::UnsupportedContentType,
            format!("only text, HTML and PDFs can be fetched, and this is {what}"),
        )
    })
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A body as it comes in, unpacked. Never larger than the largest of the limits by more than a piece.
enum Body {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Deflate(Box<ZlibDecoder<Bounded>>),
}

impl Body {
    fn new(encoding: Option<&str>) -> Result<Self, Failure> {
        let encoding = encoding.unwrap_or("identity").trim().to_ascii_lowercase();
        Ok(match encoding.as_str() {
            "identity" | "" => Self::Plain(Bounded::default()),
            "gzip" | "x-gzip" => Self::Gzip(Box::new(MultiGzDecoder::new(Bounded::default()))),
            "deflate" => Self::Deflate(Box::new(ZlibDecoder::new(Bounded::default()))),
            _ => {
                let encoding: String = encoding.chars().take(30).collect();
                let detail = format!("it is packed as `{encoding}`, which was not asked for");
                return Err(Failure::new(Code::UnsupportedContentType, detail));
            }
        })
    }

    /// `false`: nothing more will come of it. What came before the damage, or fills the room there is, stays.
    fn push(&mut self, chunk: &[u8]) -> Result<bool, Failure> {
        let written = match self {
            Self::Plain(bounded) => bounded.write_all(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
            Self::Deflate(decoder) => decoder.write_all(chunk).and_then(|()| decoder.flush()),
        };
        self.unless_damaged(written)
    }

    /// The body is over. `false`: it broke off.
    fn end(&mut self, received_bytes: usize) -> Result<bool, Failure> {
        let ended = match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(_) | Self::Deflate(_) if received_bytes == 0 => Ok(()),
            Self::Gzip(decoder) => decoder.try_finish(),
            Self::Deflate(decoder) => decoder.try_finish(),
        };
        self.unless_damaged(ended)
    }

    fn unless_damaged(&self, done: std::io::Result<()>) -> Result<bool, Failure> {
        if done.is_err() && self.bytes().is_empty() {
            return Err(Failure::new(Code::UrlNotAccessible, "its packing is damaged"));
        }
        Ok(done.is_ok())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Plain(bounded) => &bounded.bytes,
            Self::Gzip(decoder) => &decoder.get_ref().bytes,
            Self::Deflate(decoder) => &decoder.get_ref().bytes,
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let bounded = match &mut self {
            Self::Plain(bounded) => bounded,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
        };
        std::mem::take(&mut bounded.bytes)
    }
}

/// Takes a little more than the largest body, so that its end can be told from a cut, and then nothing more: a few packed
/// bytes may stand for gigabytes.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = (PDF_BYTES_MAX + 1).saturating_sub(self.bytes.len());
        if room == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let taken = bytes.len().min(room);
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
