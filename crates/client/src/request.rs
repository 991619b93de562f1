//! One HTTP request: address, headers, and the answer or the error in it.

use std::time::Duration;

use protocol::error::ErrorBody;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Query;
use crate::error::Error;

const BETA: &str = "managed-agents-2026-04-01";
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest silence. A quiet stream has a ping every fifteen seconds, so that this many say that it is dead.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
/// How much of an answer in a foreign form is kept to show.
const FOREIGN_CHARS_MAX: usize = 500;

/// A client of one server with one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    headers: HeaderMap,
}

impl Client {
    /// A client of the server at an address such as `http://127.0.0.1:8400`.
    pub fn new(base_url: &str, key: &str) -> Result<Self, Error> {
        let base = Url::parse(base_url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let base = base.ok_or_else(|| Error::Address(base_url.to_owned()))?;
        // Without it TLS has no cryptography. Somebody else may have installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME_MAX)
            .read_timeout(READ_TIME_MAX)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            // A proxy for the outside world does not know our own machine.
            builder = builder.no_proxy();
        }
        let mut headers = HeaderMap::new();
        let mut key = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| Error::Address("the API key has characters that no header takes".to_owned()))?;
        key.set_sensitive(true);
        headers.insert("authorization", key);
        headers.insert("anthropic-beta", HeaderValue::from_static(BETA));
        headers.insert("anthropic-version", HeaderValue::from_static("2026-10-21"));
        Ok(Self { http: builder.build()?, base, headers })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T, Error> {
        read(self.open(path, query).await?).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body)?;
        let request = self.request(Method::POST, path, &[]);
        read(send(request.header(CONTENT_TYPE, "application/json").body(body)).await?).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Error> {
        read(send(self.request(Method::DELETE, path, &[])).await?).await
    }

    /// A `GET` whose answer is not read yet.
    pub(crate) async fn open(&self, path: &[&str], query: Query<'_>) -> Result<Response, Error> {
        send(self.request(Method::GET, path, query)).await
    }

    fn request(&self, method: Method, path: &[&str], query: Query<'_>) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url).headers(self.headers.clone())
    }
}

async fn send(request: RequestBuilder) -> Result<Response, Error> {
    let answer = request.send().await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let status = status.as_u16();
    let bytes = answer.bytes().await?;
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => Err(Error::Refused { status, body: Box::new(body) }),
        Err(_) => {
            let text = String::from_utf8_lossy(&bytes).chars().take(FOREIGN_CHARS_MAX).collect();
            Err(Error::Foreign { status, text })
        }
    }
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, Error> {
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_not_shown() {
        let client = Client::new("http://127.0.0.1:1", "very-secret").expect("builds");
        assert!(!format!("{client:?}").contains("very-secret"));
    }

    #[test]
    fn ids_cannot_leave_their_place_in_the_path() {
        let client = Client::new("http://127.0.0.1:1/prefix/", "key").expect("builds");
        let request =
            client.request(Method::GET, &["v1", "sessions", "../x?y"], &[("types[]", "a&b")]).build();
        let url = request.expect("builds").url().to_string();
        assert_eq!(url, "http://127.0.0.1:1/prefix/v1/sessions/..%2Fx%3Fy?types%5B%5D=a%26b");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for address in ["", "nonsense", "ftp://x", "127.0.0.1:8400"] {
            assert!(matches!(Client::new(address, "key"), Err(Error::Address(_))), "{address}");
        }
    }
}
