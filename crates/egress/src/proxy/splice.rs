//! Placeholders out, secrets in: in a header's value, or in a body as it passes.
//!
//! A body is searched as it comes. Only an end that could be the beginning of a placeholder is held back until more comes,
//! so that whoever talks in both directions at once is never kept waiting for what is not a placeholder.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use memchr::memmem;
use zeroize::Zeroizing;

use crate::edge::Replacement;

/// Which of the replacements have been made, by their place in the list.
pub(super) type Made = Vec<bool>;

/// A secret has a byte that no header can have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoHeader;

/// Replaces placeholders in the values of headers, and in what Basic authorisation encodes. Says which were replaced.
pub(super) fn headers(headers: &mut HeaderMap, replacements: &[Replacement]) -> Result<Made, NoHeader> {
    let mut made = vec![false; replacements.len()];
    let wanted = |replacement: &Replacement| replacement.in_headers;
    for (name, value) in headers.iter_mut() {
        let spliced = whole(value.as_bytes(), replacements, wanted, &mut made).or_else(|| {
            let coded = (name == header::AUTHORIZATION || name == header::PROXY_AUTHORIZATION)
                .then(|| basic(value.as_bytes()))??;
            let plain = whole(&coded, replacements, wanted, &mut made)?;
            Some(Zeroizing::new(format!("Basic {}", STANDARD.encode(&*plain)).into_bytes()))
        });
        if let Some(spliced) = spliced {
            *value = HeaderValue::from_bytes(&spliced).map_err(|_| NoHeader)?;
            value.set_sensitive(true);
        }
    }
    Ok(made)
}

/// What Basic authorisation encodes.
fn basic(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, coded) = value.split_at_checked(6)?;
    scheme.eq_ignore_ascii_case(b"basic ").then(|| STANDARD.decode(coded.trim_ascii()).ok())?
}

/// Replaces in something that is there as a whole. `None`: there was nothing to replace.
fn whole(
    bytes: &[u8],
    replacements: &[Replacement],
    wanted: impl Fn(&Replacement) -> bool,
    made: &mut Made,
) -> Option<Zeroizing<Vec<u8>>> {
    let is_there = replacements.iter().any(|replacement| {
        wanted(replacement) && memmem::find(bytes, replacement.placeholder.as_bytes()).is_some()
    });
    is_there.then(|| {
        let mut out = Zeroizing::new(Vec::with_capacity(bytes.len() + 256));
        let rest = splice(bytes, replacements, wanted, made, &mut out);
        out.extend_from_slice(rest);
        out
    })
}

/// Writes everything up to the end of the last placeholder, replaced. Returns the rest, in which there is none.
fn splice<'a>(
    bytes: &'a [u8],
    replacements: &[Replacement],
    wanted: impl Fn(&Replacement) -> bool,
    made: &mut Made,
    out: &mut Vec<u8>,
) -> &'a [u8] {
    let find = |from: usize, replacement: &Replacement| {
        memmem::find(&bytes[from..], replacement.placeholder.as_bytes()).map(|at| from + at)
    };
    // The next place of each is looked for again only once it has been passed, so that all bytes are seen once for each,
    // however many places there are.
    let mut next: Vec<Option<usize>> =
        replacements.iter().map(|replacement| find(0, replacement).filter(|_| wanted(replacement))).collect();
    let mut done = 0;
    while let Some((at, index)) =
        next.iter().enumerate().filter_map(|(index, at)| Some(((*at)?, index))).min()
    {
        out.extend_from_slice(&bytes[done..at]);
        replacements[index].secret.write_to(out);
        made[index] = true;
        done = at + replacements[index].placeholder.len();
        for (next, replacement) in next.iter_mut().zip(replacements) {
            if next.is_some_and(|at| at < done) {
                *next = find(done, replacement);
            }
        }
    }
    &bytes[done..]
}

/// A body that is searched as it passes.
pub(super) struct Splicer {
    replacements: Vec<Replacement>,
    held: Vec<u8>,
    made: Made,
}

impl Splicer {
    /// For the replacements that are made in bodies.
    pub(super) fn new(replacements: &[Replacement]) -> Self {
        let replacements: Vec<_> =
            replacements.iter().filter(|replacement| replacement.in_body).cloned().collect();
        let made = vec![false; replacements.len()];
        Self { replacements, held: Vec::new(), made }
    }

    /// Whether nothing is replaced in bodies.
    pub(super) fn is_empty(&self) -> bool {
        self.replacements.is_empty()
    }

    /// Takes more of the body; gives what can be sent on. Of few bytes may come many: whoever sends placeholders alone gets
    /// a secret for each.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(self.held.len());
        let rest = splice(&self.held, &self.replacements, |_| true, &mut self.made, &mut out);
        let (sent, kept) = rest.split_at(rest.len() - self.beginning(rest));
        out.extend_from_slice(sent);
        self.held = kept.to_vec();
        out
    }

    /// The body has ended; gives what was held back.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The credentials that were spent.
    pub(super) fn spent(&self) -> impl Iterator<Item = &str> {
        let made = self.replacements.iter().zip(&self.made);
        made.filter(|(_, made)| **made).map(|(replacement, _)| replacement.credential.as_str())
    }

    /// How many bytes at the end could be the beginning of a placeholder.
    fn beginning(&self, bytes: &[u8]) -> usize {
        let longest = |placeholder: &[u8]| {
            let most = bytes.len().min(placeholder.len() - 1);
            (1..=most).rev().find(|length| bytes.ends_with(&placeholder[..*length])).unwrap_or(0)
        };
        let placeholders = self.replacements.iter().map(|replacement| replacement.placeholder.as_bytes());
        placeholders.map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::edge::Secret;

    struct Text(&'static str);

    impl Secret for Text {
        fn write_to(&self, into: &mut Vec<u8>) {
            into.extend_from_slice(self.0.as_bytes());
        }
    }

    fn replacement(placeholder: &str, secret: &'static str) -> Replacement {
        Replacement {
            credential: format!("vcrd_{secret}"),
            placeholder: placeholder.to_owned(),
            secret: Arc::new(Text(secret)),
            in_headers: true,
            in_body: true,
        }
    }

    #[test]
    fn a_body_means_the_same_however_it_is_cut() {
        let replacements = [replacement("ph_abcabd", "ONE"), replacement("ph_abcabe", "A LONGER TWO")];
        let body = b"ph_abcabph_abcabd;ph_abcabe,ph_ph_abcabcph_abcabdph_abca";
        let expected = "ph_abcabONE;A LONGER TWO,ph_ph_abcabcONEph_abca";
        for step in 1..body.len() {
            let mut splicer = Splicer::new(&replacements);
            let mut out: Vec<u8> = body.chunks(step).flat_map(|part| splicer.push(part)).collect();
            out.extend(splicer.finish());
            assert_eq!(String::from_utf8(out).unwrap(), expected, "in steps of {step}");
            assert_eq!(splicer.spent().collect::<Vec<_>>(), ["vcrd_ONE", "vcrd_A LONGER TWO"]);
        }
    }

    #[test]
    fn many_places_of_one_cost_no_search_for_another_each() {
        let replacements = [replacement("ph_abcabd", "ONE"), replacement("ph_abcabe", "TWO")];
        let body = "ph_abcabd".repeat(200_000);
        let mut splicer = Splicer::new(&replacements);
        // With a search of the rest for each place this would be two hundred thousand times a megabyte.
        assert_eq!(splicer.push(body.as_bytes()).len(), 3 * 200_000);
    }

    #[test]
    fn nothing_is_held_back_that_is_no_beginning() {
        let mut splicer = Splicer::new(&[replacement("ph_abcabd", "ONE")]);
        assert_eq!(splicer.push(b"hello"), b"hello");
        assert_eq!(splicer.push(b"hello ph_a"), b"hello ");
        assert_eq!(splicer.push(b"x"), b"ph_ax");
    }

    #[test]
    fn headers_are_replaced_in_the_open_and_within_basic_authorisation() {
        let replacements = [replacement("ph_abcabd", "ONE")];
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let mut map = HeaderMap::new();
        map.insert("x-api-key", HeaderValue::from_static("key=ph_abcabd!"));
        map.insert(header::AUTHORIZATION, HeaderValue::try_from(basic("user:ph_abcabd")).unwrap());
        map.insert("x-other", HeaderValue::from_static("ph_abcab"));
        assert_eq!(headers(&mut map, &replacements), Ok(vec![true]));
        assert_eq!(map["x-api-key"], "key=ONE!");
        assert_eq!(map[header::AUTHORIZATION], basic("user:ONE"));
        assert_eq!(map["x-other"], "ph_abcab");
        assert!(map["x-api-key"].is_sensitive() && !map["x-other"].is_sensitive());
    }

    #[test]
    fn what_no_header_can_have_is_said() {
        let mut map = HeaderMap::new();
        map.insert("x-api-key", HeaderValue::from_static("ph_abcabd"));
        assert_eq!(headers(&mut map, &[replacement("ph_abcabd", "a\nb")]), Err(NoHeader));
    }

    #[test]
    fn a_place_that_is_not_enabled_keeps_its_placeholder() {
        let body_only = Replacement { in_headers: false, ..replacement("ph_abcabd", "ONE") };
        let mut map = HeaderMap::new();
        map.insert("x-api-key", HeaderValue::from_static("ph_abcabd"));
        assert_eq!(headers(&mut map, &[body_only]), Ok(vec![false]));
        assert_eq!(map["x-api-key"], "ph_abcabd");
        let header_only = Replacement { in_body: false, ..replacement("ph_abcabd", "ONE") };
        assert_eq!(Splicer::new(&[header_only]).push(b"ph_abcabd"), b"ph_abcabd");
    }
}
