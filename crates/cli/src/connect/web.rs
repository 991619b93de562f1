//! Requests to the servers of the flow: to addresses that nobody on the way can read, bounded in time and size, without
//! redirects. Private addresses are as good as others here: the operator asks from the operator's own machine.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// For one request with its answer.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(30);
/// Metadata and tokens are a few kilobytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// How much of a server's own words is shown.
const WORDS_CHARS_MAX: usize = 300;

/// A text that is overwritten when it is dropped, and that nothing prints.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub(super) struct Hidden(Zeroizing<String>);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Hidden {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// An HTTP client for machines elsewhere, and one for this machine, of which no proxy knows.
pub(super) struct Web {
    outside: reqwest::Client,
    loopback: reqwest::Client,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
}

impl Web {
    pub(super) fn new() -> anyhow::Result<Self> {
        let builder = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIME_MAX)
                .timeout(EXCHANGE_TIME_MAX)
                .referer(false)
                // Each address is one that was named and judged, not one that somebody leads on to.
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("posthouse/", env!("CARGO_PKG_VERSION")))
        };
        Ok(Self { outside: builder().build()?, loopback: builder().no_proxy().build()? })
    }

    pub(super) fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        let http = if is_loopback(url) { &self.loopback } else { &self.outside };
        http.request(method, url.clone())
    }
}

/// Sends, and reads the whole answer. What fails is told without the address.
pub(super) async fn send(request: RequestBuilder) -> anyhow::Result<Answer> {
    let read = async {
        let mut answer = request.send().await?;
        let mut body = Zeroizing::new(Vec::new());
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Ok(None);
            }
            body.extend_from_slice(&piece);
        }
        Ok(Some(Answer { status: answer.status(), headers: std::mem::take(answer.headers_mut()), body }))
    };
    match read.await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => bail!("the answer has more than {ANSWER_BYTES_MAX} bytes"),
        Err(error) => Err(reqwest::Error::without_url(error).into()),
    }
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        // The error of the parser may repeat what it has read.
        serde_json::from_slice(&self.body).ok().context("the answer is not the JSON that it should be")
    }

    /// An OAuth error in words: the status and, if the server says why, that, without these secrets.
    pub(super) fn complaint(&self, secrets: &[&str]) -> String {
        #[derive(Default, Deserialize)]
        struct Complaint {
            error: Option<String>,
            error_description: Option<String>,
        }
        let Complaint { error, error_description } = serde_json::from_slice(&self.body).unwrap_or_default();
        let said = words(&[error, error_description].into_iter().flatten().collect::<Vec<_>>().join(": "));
        let said = secrets
            .iter()
            .filter(|secret| !secret.is_empty())
            .fold(said, |said, secret| said.replace(secret, "[secret]"));
        match said.is_empty() {
            true => format!("status {}", self.status.as_u16()),
            false => format!("status {}, {said}", self.status.as_u16()),
        }
    }
}

/// What a stranger wrote, fit for a terminal.
pub(super) fn words(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(WORDS_CHARS_MAX).collect()
}

/// An address that may be asked: `https`, or `http` on this machine, without a user in it.
pub(super) fn address(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).ok().filter(Url::has_host);
    let url = url.with_context(|| format!("`{}` is no address", words(text)))?;
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "an address must not contain a user or a password"
    );
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
    ensure!(is_safe, "{url} must begin with https://; http:// is only for this machine itself");
    Ok(url)
}

/// The same for an address that a server names: one elsewhere must not send us to what listens on the operator's machine.
pub(super) fn named_by(server: &Url, text: &str) -> anyhow::Result<Url> {
    let url = address(text)?;
    ensure!(
        is_loopback(server) || !is_loopback(&url),
        "{url} is an address of this machine, named by a server elsewhere"
    );
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_on_the_way_can_read_is_asked() {
        for text in ["https://a.example/x", "http://127.0.0.1:1", "http://[::1]/", "http://localhost:1/x"] {
            assert!(address(text).is_ok(), "{text}");
        }
        for text in [
            "http://a.example",
            "http://10.0.0.1",
            "https://u:p@a.example",
            "ftp://a.example",
            "a.example",
            "file:///x",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_elsewhere_does_not_lead_to_this_machine() {
        let (here, elsewhere) = ("http://127.0.0.1:1/mcp", "https://a.example/mcp");
        let leads = |from: &str, to: &str| named_by(&Url::parse(from).expect("an address"), to).is_ok();
        assert!(
            leads(here, "http://127.0.0.1:2/")
                && leads(here, elsewhere)
                && leads(elsewhere, "https://b.example")
        );
        for to in ["http://127.0.0.1:2/", "https://localhost/", "https://[::1]:3/"] {
            assert!(!leads(elsewhere, to), "{to}");
        }
    }
}
