//! The grammar of a domain in the lists of the web tools.
//!
//! A plain host name at or below a registrable domain. Nothing is guessed: what could be read in two ways is refused.

/// The longest entry, in characters.
pub(super) const CHARS_MAX: usize = 255;
/// The longest label of a host name, in characters (RFC 1035).
const LABEL_CHARS_MAX: usize = 63;
/// Names that never lead to a public host.
const PRIVATE_NAMES: [&str; 5] = ["localhost", "local", "internal", "localdomain", "invalid"];
/// What a path must not hold: it would end the path, or mean something to a search engine.
const PATH_SIGNS_REFUSED: [char; 8] = ['?', '#', '$', ',', '|', '^', '!', '*'];

/// Whether an entry may end with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Taken,
    Refused,
}

/// Checks an entry, and gives what it means: two entries with one meaning are the same.
pub(super) fn check(entry: &str, path: Path) -> Result<String, String> {
    if !entry.is_ascii() {
        return Err("must be ASCII: write an international name in its `xn--` form".to_owned());
    }
    if entry.chars().any(|c| c.is_ascii_whitespace() || c.is_ascii_control()) {
        return Err("must not contain white space".to_owned());
    }
    if entry.contains("://") {
        return Err("must not have a scheme: write `example.com`".to_owned());
    }
    let (host, rest) = entry.split_once('/').unwrap_or((entry, ""));
    // One slash at the end says nothing.
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    check_host(host)?;
    if !rest.is_empty() {
        if path == Path::Refused {
            return Err("must not have a path".to_owned());
        }
        if let Some(sign) = rest.chars().find(|sign| PATH_SIGNS_REFUSED.contains(sign)) {
            return Err(format!("must not have `{sign}` in its path"));
        }
    } else if entry.ends_with("//") {
        return Err("must not have an empty path segment".to_owned());
    }
    let host = host.to_ascii_lowercase();
    Ok(if rest.is_empty() { host } else { format!("{host}/{rest}") })
}

fn check_host(host: &str) -> Result<(), String> {
    let refusal = |rule: &str| Err(rule.to_owned());
    if host.contains('*') {
        return refusal("must not have a wildcard: a domain stands for its subdomains, too");
    }
    if host.contains('@') {
        return refusal("must not have credentials");
    }
    if host.starts_with('[') {
        return refusal("must be a name, not an IP address");
    }
    if host.contains(':') {
        return refusal("must not have a port");
    }
    if let Some(sign) = host.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')) {
        return Err(format!("must be a host name of letters, digits, `-`, `_` and `.`, without `{sign}`"));
    }
    let labels: Vec<&str> = host.split('.').collect();
    if labels.iter().any(|label| label.is_empty()) {
        return refusal("must not have an empty label between, before or after dots");
    }
    if labels.iter().any(|label| label.len() > LABEL_CHARS_MAX) {
        return Err(format!("must have labels of at most {LABEL_CHARS_MAX} characters"));
    }
    if labels.iter().any(|label| label.starts_with('-') || label.ends_with('-')) {
        return refusal("must not have a label that begins or ends with `-`");
    }
    let lower = host.to_ascii_lowercase();
    let last = lower.rsplit('.').next().expect("a split gives at least one part");
    if is_number(last) {
        return refusal("must be a name, not an IP address");
    }
    if PRIVATE_NAMES.contains(&last) {
        return Err(format!("must be a public name: `{last}` never is"));
    }
    if labels.len() == 1 {
        return refusal("must be a registrable domain or one below it, not a single label");
    }
    let suffix = psl::suffix(lower.as_bytes());
    if suffix.is_some_and(|suffix| {
        suffix.is_known() && suffix == lower.as_str() && suffix.typ() == Some(psl::Type::Icann)
    }) {
        return refusal("must be a registrable domain or one below it, not a public suffix");
    }
    Ok(())
}

/// Whether a host that ends with this label is an IPv4 address in one of its spellings: `10`, `0x7f`, `017`.
fn is_number(label: &str) -> bool {
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    label.bytes().all(|byte| byte.is_ascii_digit()) || label.strip_prefix("0x").is_some_and(is_hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_hosts_are_taken_whatever_their_case() {
        for (entry, meaning) in [
            ("example.com", "example.com"),
            ("Docs.Example.COM/", "docs.example.com"),
            ("a_b.example.co.uk", "a_b.example.co.uk"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("someone.github.io", "someone.github.io"),
            ("3com.com", "3com.com"),
        ] {
            assert_eq!(check(entry, Path::Refused).as_deref(), Ok(meaning), "{entry}");
        }
    }

    #[test]
    fn what_is_no_plain_host_is_refused_with_the_reason() {
        for (entry, reason) in [
            ("https://example.com", "scheme"),
            ("example.com:443", "port"),
            ("me:secret@example.com", "credentials"),
            ("*.example.com", "wildcard"),
            ("exam ple.com", "white space"),
            ("bücher.example", "xn--"),
            ("127.0.0.1", "IP address"),
            ("2130706433", "IP address"),
            ("0x7f.1", "IP address"),
            ("example.0x7f", "IP address"),
            ("[::1]", "IP address"),
            ("com", "single label"),
            ("co.uk", "public suffix"),
            ("localhost", "public name"),
            ("app.localhost", "public name"),
            ("printer.local", "public name"),
            ("metadata.google.internal", "public name"),
            ("a.localdomain", "public name"),
            ("a.invalid", "public name"),
            ("-a.example.com", "begins or ends"),
            ("a-.example.com", "begins or ends"),
            ("a..example.com", "empty label"),
            (".example.com", "empty label"),
            ("example.com.", "empty label"),
            ("example.com/docs", "path"),
            ("example.com//", "empty path segment"),
            ("ex%61mple.com", "without `%`"),
        ] {
            let rule = check(entry, Path::Refused).expect_err(entry);
            assert!(rule.contains(reason), "{entry}: {rule}");
        }
        let long = format!("{}.example", "a".repeat(64));
        assert!(check(&long, Path::Refused).expect_err("long").contains("63"));
    }

    #[test]
    fn an_entry_of_a_search_may_have_a_path() {
        assert_eq!(check("Example.com/Docs/v1/", Path::Taken).as_deref(), Ok("example.com/Docs/v1"));
        for sign in ["?", "#", "$", ",", "|", "^", "!", "*"] {
            let rule = check(&format!("example.com/a{sign}b"), Path::Taken).expect_err(sign);
            assert!(rule.contains("path"), "{rule}");
        }
        assert!(check("example.com/a b", Path::Taken).is_err());
    }
}
