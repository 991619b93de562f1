//! Which hosts an agent's lists let through.
//!
//! An entry stands for its host and all below it. Entries were checked when the agent was saved.

use reqwest::Url;

/// The lists of one tool. At most one of them is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Domains<'a> {
    pub(crate) allowed: Option<&'a [String]>,
    pub(crate) blocked: Option<&'a [String]>,
}

impl Domains<'_> {
    /// Whether this address may be fetched or shown.
    pub(crate) fn permit(self, url: &Url) -> bool {
        let among = |list: &[String]| list.iter().any(|entry| covers(entry, url));
        self.allowed.is_none_or(among) && !self.blocked.is_some_and(among)
    }
}

fn covers(entry: &str, url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    // A dot at the end names the same host.
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let entry = entry.strip_suffix('/').unwrap_or(entry);
    let (domain, path) = entry.split_once('/').map_or((entry, None), |(domain, path)| (domain, Some(path)));
    let domain = domain.to_ascii_lowercase();
    let is_below = || host.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'));
    (host == domain || is_below()) && path.is_none_or(|path| has_path(url, path))
}

/// Whether the address's path is this one or goes on below it.
fn has_path(url: &Url, path: &str) -> bool {
    let rest = url.path().strip_prefix('/').and_then(|own| own.strip_prefix(path));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allowed: Option<&[&str]>, blocked: Option<&[&str]>, url: &str) -> bool {
        let owned =
            |list: Option<&[&str]>| list.map(|list| list.iter().map(|entry| (*entry).to_owned()).collect());
        let (allowed, blocked): (Option<Vec<String>>, Option<Vec<String>>) = (owned(allowed), owned(blocked));
        let domains = Domains { allowed: allowed.as_deref(), blocked: blocked.as_deref() };
        domains.permit(&Url::parse(url).expect("a URL"))
    }

    #[test]
    fn a_domain_stands_for_itself_and_all_below_it_and_nothing_else() {
        for (entry, url, is_covered) in [
            ("example.com", "https://example.com/", true),
            ("Example.com/", "https://www.example.com:8443/a?b", true),
            ("example.com", "https://EXAMPLE.com./", true),
            ("example.com", "https://notexample.com/", false),
            ("example.com", "https://example.com.evil.test/", false),
            ("example.com", "https://evil.test/?example.com", false),
            ("docs.example.com", "https://example.com/", false),
            ("example.com", "http://127.0.0.1/", false),
            ("xn--bcher-kva.example", "https://bücher.example/", true),
            ("example.com/docs", "https://example.com/docs", true),
            ("example.com/docs", "https://a.example.com/docs/1", true),
            ("example.com/docs", "https://example.com/docs2", false),
            ("example.com/docs", "https://example.com/", false),
        ] {
            assert_eq!(permits(Some(&[entry]), None, url), is_covered, "allowed {entry}: {url}");
            assert_eq!(permits(None, Some(&[entry]), url), !is_covered, "blocked {entry}: {url}");
        }
        assert!(permits(None, None, "https://anything.test/"));
    }
}
