//! Text that nobody is to see.

use std::cmp::Reverse;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem;
use zeroize::Zeroizing;

/// Shorter text is too common to be told from a secret.
const FORM_BYTES_MIN: usize = 4;

/// A secret on its way into the vault, or out of it to where it is spent. It cannot be printed or written as JSON, and
/// its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over. It is not copied, so that nothing of it stays behind.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. For crate `vault` alone: `cargo xtask tidy` refuses this word anywhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

/// How a secret may look in what a stranger says: as it is, in an address, inside JSON, in hexadecimal digits, and as base64
/// at any of its three offsets. Overwritten when it is dropped.
pub struct Forms(Vec<Zeroizing<String>>);

impl Forms {
    /// All forms of a secret; none if it is too short to be told from other text.
    pub fn of(secret: &str) -> Self {
        if secret.len() < FORM_BYTES_MIN {
            return Self(Vec::new());
        }
        let in_json = Zeroizing::new(serde_json::to_string(secret).unwrap_or_default());
        let mut forms = vec![
            secret.to_owned(),
            url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            in_json.trim_matches('"').to_owned(),
            secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
            secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ];
        for offset in 0..3 {
            let mut bytes = Zeroizing::new(vec![0_u8; offset]);
            bytes.extend_from_slice(secret.as_bytes());
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                // The letters that hold bits of the secret alone.
                let text = Zeroizing::new(engine.encode(&*bytes));
                let (first, last) = ([0, 2, 3][offset], bytes.len() * 4 / 3);
                forms.push(text.get(first..last).unwrap_or_default().to_owned());
            }
        }
        let mut forms: Vec<_> = forms.into_iter().map(Zeroizing::new).collect();
        forms.retain(|form| form.len() >= FORM_BYTES_MIN);
        // The longest first: a short one may be part of it.
        forms.sort_by(|a, b| (Reverse(a.len()), a.as_str()).cmp(&(Reverse(b.len()), b.as_str())));
        forms.dedup();
        Self(forms)
    }

    /// The text with something else in the place of every form.
    pub fn strike(&self, text: String, instead: &str) -> String {
        self.0.iter().fold(text, |text, form| {
            // Nearly always there is none, and texts may be long.
            let is_there = memmem::find(text.as_bytes(), form.as_bytes()).is_some();
            if is_there { text.replace(form.as_str(), instead) } else { text }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_struck_in_every_form() {
        use base64::engine::general_purpose::STANDARD;
        let secret = "s3cr3t/with+signs\"and more?>";
        let forms = Forms::of(secret);
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        for text in [
            secret.to_owned(),
            serde_json::to_string(secret).expect("JSON"),
            url::form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            hex.to_uppercase(),
            hex,
            STANDARD.encode(secret),
            STANDARD.encode(format!("1{secret}")),
            URL_SAFE_NO_PAD.encode(format!("12{secret}!")),
        ] {
            let struck = forms.strike(format!("({text})"), "*");
            assert!(struck.contains('*') && struck.len() < 12, "{text}: {struck}");
        }
        assert_eq!(Forms::of("abc").strike("abc".to_owned(), "*"), "abc", "it could be anything");
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        assert_eq!(format!("{:?}", Secret::new("hush".to_owned())), "[secret]");
    }
}
