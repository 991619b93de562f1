//! What another server answered, read with a bound and shown without secrets.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use protocol::credential_validation::HttpResponse;
use protocol::secret::Forms;
use reqwest::Response;
use zeroize::Zeroize as _;

use crate::opened::Opened;

/// How much of a body is read. The longest secret that begins in what is shown ends before this.
const READ_BYTES_MAX: usize = 64 << 10;
/// How much of a body is shown.
const SHOWN_CHARS_MAX: usize = 2_048;
const KIND_CHARS_MAX: usize = 256;
/// What stands in the place of a secret.
const SCRUBBED: &str = "[secret]";

/// An answer, read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    is_cut: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // It may hold tokens.
        self.body.zeroize();
    }
}

impl Answer {
    /// Reads an answer until `is_enough` or its end.
    pub(crate) async fn read(
        mut response: Response,
        is_enough: impl Fn(&[u8]) -> bool,
    ) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::with_capacity(READ_BYTES_MAX);
        let mut is_cut = false;
        while let Some(chunk) = response.chunk().await? {
            let room = READ_BYTES_MAX - body.len();
            is_cut |= chunk.len() > room;
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if is_cut || is_enough(&body) {
                break;
            }
        }
        Ok(Self { status, headers, body, is_cut })
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn content_type(&self) -> &str {
        self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default()
    }

    /// As the wire shows it, without any of these secrets in any of their usual forms.
    pub(crate) fn shown(&self, secrets: &[&Opened]) -> HttpResponse {
        let mut text = String::from_utf8_lossy(&self.body).into_owned();
        let mut kind = self.content_type().to_owned();
        for secret in secrets {
            let forms = secret.expose(Forms::of);
            text = forms.strike(text, SCRUBBED);
            kind = forms.strike(kind, SCRUBBED);
        }
        // Scrubbed first: the beginning of a secret would not be found.
        let body: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        HttpResponse {
            status_code: self.status,
            content_type: kind.chars().take(KIND_CHARS_MAX).collect(),
            body_truncated: self.is_cut || body.len() < text.len(),
            body,
        }
    }
}

/// A text as forms send it.
pub(crate) fn form_urlencoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use protocol::secret::Secret;

    use super::*;

    fn answer(body: &str) -> Answer {
        Answer { status: 400, headers: HeaderMap::new(), body: body.as_bytes().to_vec(), is_cut: false }
    }

    #[test]
    fn a_secret_is_not_shown_in_any_form() {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        let secret = "s3cr3t/with+signs\"and more";
        let opened = Opened::new(Secret::new(secret.to_owned()));
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let bodies = [
            format!("token {secret} is bad"),
            serde_json::json!({"error": secret}).to_string(),
            format!("token={}", form_urlencoded(secret)),
            format!("hex {hex}"),
            STANDARD.encode(format!("client:{secret}")),
            STANDARD.encode(format!("client1:{secret}")),
            STANDARD.encode(format!("client12:{secret}!")),
        ];
        for body in bodies {
            let shown = answer(&body).shown(&[&opened]).body;
            assert!(shown.contains(SCRUBBED), "{body}: {shown}");
            assert!(!shown.contains("s3cr3t") && !shown.contains(&hex), "{shown}");
        }
    }

    #[test]
    fn a_long_body_is_cut_after_it_was_scrubbed() {
        let opened = Opened::new(Secret::new("hush-hush".to_owned()));
        let body = format!("{}hush-hush{}", "x".repeat(SHOWN_CHARS_MAX - 4), "y".repeat(100));
        let shown = answer(&body).shown(&[&opened]);
        assert!(shown.body_truncated && shown.body.ends_with("x[sec"), "{}", shown.body);
        assert!(!answer("short").shown(&[&opened]).body_truncated);
    }
}
