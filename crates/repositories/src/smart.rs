//! Which requests git's smart protocol makes of one repository. Everything else is refused: there is one spelling of each, and
//! nothing is decoded, so that no other repository can be meant.

use http::Method;

/// One of the four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// What is there, for whoever wants to fetch or push.
    Refs(Service),
    /// Fetching or pushing.
    Rpc(Service),
}

/// Which way objects go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Fetching.
    UploadPack,
    /// Pushing.
    ReceivePack,
}

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }
}

impl Endpoint {
    /// Reads the end of a path, after the repository's, and the query.
    pub(crate) fn parse(method: &Method, tail: &str, query: Option<&str>) -> Option<Self> {
        use Service::{ReceivePack, UploadPack};
        match (method, tail, query) {
            (&Method::GET, "/info/refs", Some("service=git-upload-pack")) => Some(Self::Refs(UploadPack)),
            (&Method::GET, "/info/refs", Some("service=git-receive-pack")) => Some(Self::Refs(ReceivePack)),
            (&Method::POST, "/git-upload-pack", None) => Some(Self::Rpc(UploadPack)),
            (&Method::POST, "/git-receive-pack", None) => Some(Self::Rpc(ReceivePack)),
            _ => None,
        }
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Refs(_) => Method::GET,
            Self::Rpc(_) => Method::POST,
        }
    }

    /// What follows the repository's address.
    pub(crate) fn tail(self) -> String {
        match self {
            Self::Refs(service) => format!("/info/refs?service={}", service.name()),
            Self::Rpc(service) => format!("/{}", service.name()),
        }
    }
}

/// Takes the path of a request apart: what stands before the endpoint, and the endpoint.
pub(crate) fn split<'p>(method: &Method, path: &'p str, query: Option<&str>) -> Option<(&'p str, Endpoint)> {
    ["/info/refs", "/git-upload-pack", "/git-receive-pack"].into_iter().find_map(|tail| {
        let before = path.strip_suffix(tail)?;
        Some((before, Endpoint::parse(method, tail, query)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_four_requests_and_one_spelling_of_each() {
        let read = |method: Method, path: &str, query| {
            split(&method, path, query).map(|(before, _)| before.to_owned())
        };
        let (get, post) = (|| Method::GET, || Method::POST);
        assert_eq!(read(get(), "/a/info/refs", Some("service=git-upload-pack")).as_deref(), Some("/a"));
        assert_eq!(read(post(), "/a/git-receive-pack", None).as_deref(), Some("/a"));
        for (method, path, query) in [
            (get(), "/a/info/refs", None),
            (get(), "/a/info/refs", Some("service=git-upload-archive")),
            (get(), "/a/info/refs", Some("service=git-upload-pack&x=1")),
            (get(), "/a/info/refs", Some("service=git%2dupload-pack")),
            (post(), "/a/info/refs", Some("service=git-upload-pack")),
            (get(), "/a/git-upload-pack", None),
            (post(), "/a/git-upload-pack", Some("x")),
            (post(), "/a/git-upload-pack/", None),
            (post(), "/a/info/lfs/objects/batch", None),
            (get(), "/a/HEAD", None),
            (get(), "/a/objects/info/packs", None),
            (Method::HEAD, "/a/info/refs", Some("service=git-upload-pack")),
        ] {
            assert_eq!(read(method, path, query), None, "{path} {query:?}");
        }
    }
}
