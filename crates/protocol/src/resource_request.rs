//! Requests about a session's resources, and which addresses a repository may have.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::id::ResourceId;
use crate::parse::{Fields, Invalid, Parsed, clipped, list, text};
use crate::resource::{Checkout, Repository, Resource};
use crate::secret::Secret;
use crate::time::Timestamp;

const URL_CHARS_MAX: usize = 2048;
const TOKEN_CHARS_MAX: usize = 4096;
const PATH_CHARS_MAX: usize = 4096;
const BRANCH_CHARS_MAX: usize = 255;
/// Not stated by the reference. Each is cloned before the first call runs.
const REPOSITORIES_MAX: usize = 20;
/// Folders of a repository's path on a host: a group may have groups.
const URL_NAMES_MAX: usize = 20;
/// Where every repository is put.
const WORKSPACE: &str = "/workspace/";
const GITHUB: &str = "github.com";

/// A repository in the body of `POST /v1/sessions`.
#[derive(Clone, Debug, PartialEq)]
pub struct RepositoryCreate {
    /// Where it comes from. Whether that is a host that may be asked is for [`RepositoryUrl::parse`].
    pub url: String,
    /// What its host is told; none for what everybody may read.
    pub authorization_token: Option<Secret>,
    /// What is checked out.
    pub checkout: Option<Checkout>,
    /// Where it is put; `/workspace/` and its name if `None`.
    pub mount_path: Option<String>,
}

/// The resources of a new session.
pub(crate) fn resources(value: Value, path: &str) -> Parsed<Vec<RepositoryCreate>> {
    list(0..=REPOSITORIES_MAX, RepositoryCreate::parse)(value, path)
}

impl RepositoryCreate {
    fn parse(value: Value, path: &str) -> Parsed<Self> {
        let mut fields = Fields::new(value, path)?;
        match fields.tag(&["file", "github_repository", "memory_store"])? {
            "github_repository" => {}
            other => {
                return Err(Invalid::unbuilt(
                    fields.path_of("type"),
                    &format!("a resource of type `{other}`"),
                ));
            }
        }
        let create = Self {
            url: fields.required("url", text(1..=URL_CHARS_MAX))?,
            authorization_token: fields.optional("authorization_token", token)?,
            checkout: fields.optional("checkout", checkout)?,
            mount_path: fields.optional("mount_path", mount_path)?,
        };
        fields.finish()?;
        Ok(create)
    }

    /// The resource that it becomes, and its token. `path` is where it stands in the request.
    pub fn into_resource(
        self,
        id: ResourceId,
        hosts: &GitHosts,
        now: Timestamp,
        path: &str,
    ) -> Parsed<(Repository, Option<Secret>)> {
        let Self { url, authorization_token, checkout, mount_path } = self;
        let parsed =
            RepositoryUrl::parse(&url, hosts).map_err(|rule| Invalid::new(format!("{path}.url"), rule))?;
        let mount_path = mount_path.unwrap_or_else(|| format!("{WORKSPACE}{}", parsed.name()));
        Ok((
            Repository { id, url, mount_path, checkout, created_at: now, updated_at: now },
            authorization_token,
        ))
    }
}

/// Refuses two resources at one place, and one within another, where neither would be what it should.
pub fn check_places(resources: &[Resource], path: &str) -> Parsed<()> {
    let places: Vec<&str> = resources
        .iter()
        .filter_map(Resource::repository)
        .map(|repository| repository.mount_path.as_str())
        .collect();
    for (index, place) in places.iter().enumerate() {
        let is_within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(other) =
            places[..index].iter().find(|other| is_within(place, other) || is_within(other, place))
        {
            let rule = format!("meets another resource, which is put at `{}`", clipped(other));
            return Err(Invalid::new(format!("{path}[{index}].mount_path"), rule));
        }
    }
    Ok(())
}

/// The body of `POST /v1/sessions/{session_id}/resources/{resource_id}`.
pub fn parse_rotation(body: Value) -> Parsed<Secret> {
    let mut fields = Fields::new(body, "")?;
    let token = fields.required("authorization_token", token)?;
    fields.finish()?;
    Ok(token)
}

/// The type of what is to be added to a session; only files could be, and they are not built.
pub fn parse_addition(body: Value) -> Parsed<Infallible> {
    let mut fields = Fields::new(body, "")?;
    fields.tag(&["file"])?;
    Err(Invalid::unbuilt("type", "a resource of type `file`"))
}

/// What is sent in a header must be able to stand there.
fn token(value: Value, path: &str) -> Parsed<Secret> {
    let token = text(1..=TOKEN_CHARS_MAX)(value, path)?;
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Invalid::new(path, "must be printable ASCII without spaces"));
    }
    Ok(Secret::new(token))
}

fn checkout(value: Value, path: &str) -> Parsed<Checkout> {
    let mut fields = Fields::new(value, path)?;
    let checkout = match fields.tag(&["branch", "commit"])? {
        "branch" => Checkout::Branch { name: fields.required("name", branch)? },
        _ => Checkout::Commit { sha: fields.required("sha", sha)? },
    };
    fields.finish()?;
    Ok(checkout)
}

/// By the rules of git for names of branches, so that nothing else can be read into it.
fn branch(value: Value, path: &str) -> Parsed<String> {
    let name = text(1..=BRANCH_CHARS_MAX)(value, path)?;
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_good = name.split('/').all(is_plain)
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.chars().any(|char| char.is_control() || " ~^:?*[\\".contains(char));
    if is_good { Ok(name) } else { Err(Invalid::new(path, "is no name that a branch can have")) }
}

fn sha(value: Value, path: &str) -> Parsed<String> {
    let sha = text(7..=64)(value, path)?;
    match sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(sha.to_ascii_lowercase()),
        false => Err(Invalid::new(path, "must be hexadecimal digits")),
    }
}

fn mount_path(value: Value, path: &str) -> Parsed<String> {
    let place = text(1..=PATH_CHARS_MAX)(value, path)?;
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.chars().any(char::is_control)
    };
    let below = place.strip_prefix(WORKSPACE).map(|below| below.strip_suffix('/').unwrap_or(below));
    match below {
        Some(below) if below.split('/').all(is_name) => Ok(format!("{WORKSPACE}{below}")),
        Some(_) | None => {
            Err(Invalid::new(path, "must be an absolute path below `/workspace`, without `.` and `..`"))
        }
    }
}

/// The hosts from which repositories may come: GitHub, and what the operator allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitHosts(Vec<GitHost>);

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GitHost {
    host: String,
    port: u16,
}

const HTTPS: u16 = 443;

impl FromStr for GitHosts {
    type Err = String;

    /// Names or addresses with commas or white space between them, each optionally with a port.
    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(|char: char| char == ',' || char.is_whitespace());
        let hosts = entries.filter(|entry| !entry.is_empty()).map(|entry| {
            authority(entry).ok_or_else(|| {
                format!("`{entry}` is no host: write a name or an address, and a port if it is not 443")
            })
        });
        hosts.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for GitHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(GITHUB)?;
        self.0.iter().try_for_each(|GitHost { host, port }| write!(f, ", {host}:{port}"))
    }
}

fn authority(text: &str) -> Option<GitHost> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            (host, port.parse().ok().filter(|port| is_number && *port > 0)?)
        }
        None => (text, HTTPS),
    };
    let is_letter =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let is_good =
        host.len() <= 253 && host.split('.').all(|label| !label.is_empty() && label.bytes().all(is_letter));
    is_good.then(|| GitHost { host: host.to_owned(), port })
}

/// Where a repository is, in its one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryUrl {
    host: String,
    port: u16,
    /// Plain names with `/` between them, without `.git`.
    path: String,
}

impl RepositoryUrl {
    /// Reads `https://github.com/<owner>/<repository>`, or a path of at least two names on a host that the operator allows,
    /// there with or without `.git`. The error is a rule.
    pub fn parse(url: &str, hosts: &GitHosts) -> Result<Self, String> {
        let form = || "must be `https://github.com/<owner>/<repository>`".to_owned();
        let rest = url.strip_prefix("https://").ok_or_else(form)?;
        let (place, path) = rest.split_once('/').ok_or_else(form)?;
        let GitHost { host, port } = authority(place).ok_or_else(form)?;
        let is_github = host == GITHUB && place == GITHUB;
        if !is_github && !hosts.0.contains(&GitHost { host: host.clone(), port }) {
            return Err(format!("must be on a host that this server takes repositories from: {hosts}"));
        }
        let names: Vec<&str> = path.split('/').collect();
        if names.len() < 2 || names.len() > URL_NAMES_MAX || (is_github && names.len() != 2) {
            return Err(form());
        }
        let is_letter =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+');
        let is_name = |name: &&str| {
            !matches!(*name, "" | "." | "..") && name.len() <= 255 && name.bytes().all(is_letter)
        };
        if !names.iter().all(is_name) {
            return Err("must have plain names as its path: letters, digits, `-`, `_` and `.`".to_owned());
        }
        let path = match path.strip_suffix(".git") {
            Some(_) if is_github => return Err("must not end in `.git`".to_owned()),
            Some(short) if short.ends_with('/') => return Err(form()),
            Some(short) => short,
            None => path,
        };
        Ok(Self { host, port, path: path.to_owned() })
    }

    /// The host, without its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Plain names with `/` between them, without `.git`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its last name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The address below which its endpoints are: `https://host/path.git`.
    pub fn base(&self) -> String {
        match self.port {
            HTTPS => format!("https://{}/{}.git", self.host, self.path),
            port => format!("https://{}:{port}/{}.git", self.host, self.path),
        }
    }
}

#[cfg(test)]
mod tests;
