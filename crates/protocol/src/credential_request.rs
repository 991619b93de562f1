//! Requests about credentials: what may be asked, and what a credential looks like after a change.
//!
//! The secrets in a request become [`Secret`]s here. No refusal repeats a value that a client sent: whoever puts a secret
//! into the wrong field must not find it in a log.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::credential::{
    Credential, CredentialAuth, CredentialNetworking, CredentialTag, InjectionLocation, OauthRefresh,
    TokenEndpointAuth, normalized,
};
use crate::environment_request::is_host;
use crate::id::{CredentialId, VaultId};
use crate::metadata::{Metadata, MetadataPatch, patched};
use crate::parse::{
    Fields, Invalid, Parsed, Patch, boolean, check_metadata, kind_of, list, metadata, metadata_patch, text,
};
use crate::secret::Secret;
use crate::time::Timestamp;

const NAME_CHARS_MAX: usize = 255;
const URL_CHARS: RangeInclusive<usize> = 1..=2_047;
const TOKEN_CHARS: RangeInclusive<usize> = 1..=8_192;
const REFRESH_TOKEN_CHARS: RangeInclusive<usize> = 1..=4_096;
const CLIENT_ID_CHARS: RangeInclusive<usize> = 1..=1_024;
const CLIENT_SECRET_CHARS: RangeInclusive<usize> = 1..=512;
const SCOPE_CHARS_MAX: usize = 8_192;
const RESOURCE_CHARS: RangeInclusive<usize> = 1..=2_047;
const SECRET_NAME_CHARS: RangeInclusive<usize> = 1..=255;
const SECRET_VALUE_CHARS: RangeInclusive<usize> = 1..=4_096;
const ALLOWED_HOSTS: RangeInclusive<usize> = 1..=16;
const HOST_CHARS: RangeInclusive<usize> = 1..=253;
/// The `error_code` of what an archived credential refuses.
pub const CREDENTIAL_ARCHIVED: &str = "vault_credential_archived";

/// Which secret of a credential. The names are stored, and are sealed with what they name; they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretField {
    /// Of a `static_bearer`.
    Token,
    /// Of an `mcp_oauth`.
    AccessToken,
    /// The same.
    RefreshToken,
    /// The same.
    ClientSecret,
    /// Of an `environment_variable`.
    SecretValue,
}

impl SecretField {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Token, Self::AccessToken, Self::RefreshToken, Self::ClientSecret, Self::SecretValue];

    /// As it is stored, and as the wire calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::AccessToken => "access_token",
            Self::RefreshToken => "refresh_token",
            Self::ClientSecret => "client_secret",
            Self::SecretValue => "secret_value",
        }
    }
}

/// Secrets as a client sent them.
pub type Secrets = BTreeMap<SecretField, Secret>;

/// The body of `POST /v1/vaults/{vault_id}/credentials`.
#[derive(Clone, Debug, PartialEq)]
pub struct CredentialCreate {
    auth: CredentialAuth,
    secrets: Secrets,
    display_name: Option<String>,
    metadata: Metadata,
}

impl CredentialCreate {
    /// Reads the body at `now`.
    pub fn parse(body: Value, now: Timestamp) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let mut secrets = Secrets::new();
        let auth = fields.required("auth", |value, path| new_auth(value, path, now, &mut secrets))?;
        let create = Self {
            auth,
            secrets,
            display_name: fields.optional("display_name", text(0..=NAME_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata)?.unwrap_or_default(),
        };
        fields.finish()?;
        Ok(create)
    }

    /// The new credential, and what is to be sealed with it.
    pub fn into_credential(
        self,
        id: CredentialId,
        vault_id: VaultId,
        now: Timestamp,
    ) -> (Credential, Secrets) {
        let Self { auth, secrets, display_name, metadata } = self;
        let credential = Credential {
            tag: CredentialTag::VaultCredential,
            id,
            vault_id,
            auth,
            display_name,
            metadata,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        (credential, secrets)
    }
}

/// The body of `POST /v1/vaults/{vault_id}/credentials/{credential_id}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CredentialUpdate {
    auth: Option<AuthUpdate>,
    secrets: Secrets,
    display_name: Patch<String>,
    metadata: MetadataPatch,
}

#[derive(Clone, Debug, PartialEq)]
enum AuthUpdate {
    McpOauth {
        expires_at: Patch<Timestamp>,
        refresh: Option<RefreshUpdate>,
    },
    StaticBearer,
    EnvironmentVariable {
        networking: Option<CredentialNetworking>,
        injection_location: Option<InjectionUpdate>,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct RefreshUpdate {
    scope: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InjectionUpdate {
    header: Option<bool>,
    body: Option<bool>,
}

impl CredentialUpdate {
    /// Reads the body at `now`.
    pub fn parse(body: Value, now: Timestamp) -> Parsed<Self> {
        let mut fields = Fields::new(body, "")?;
        let mut secrets = Secrets::new();
        let auth = fields.optional("auth", |value, path| auth_update(value, path, now, &mut secrets))?;
        let update = Self {
            auth,
            secrets,
            display_name: fields.patch("display_name", text(1..=NAME_CHARS_MAX))?,
            metadata: fields.optional("metadata", metadata_patch)?.unwrap_or_default(),
        };
        fields.finish()?;
        Ok(update)
    }

    /// The new secrets, to be sealed before the change is applied.
    pub fn take_secrets(&mut self) -> Secrets {
        std::mem::take(&mut self.secrets)
    }

    /// The credential after the change. `sent` are the secrets that the request had: they count as a change, because
    /// nobody can tell whether they are new. `None` if nothing would change.
    pub fn apply(
        self,
        current: &Credential,
        sent: &[SecretField],
        now: Timestamp,
    ) -> Parsed<Option<Credential>> {
        let Self { auth, secrets: _, display_name, metadata } = self;
        if current.archived_at.is_some() {
            return Err(archived_credential());
        }
        let mut changed = current.clone();
        match display_name {
            Patch::Keep => {}
            Patch::Clear => changed.display_name = None,
            Patch::Set(display_name) => changed.display_name = Some(display_name),
        }
        changed.metadata = patched(&current.metadata, &metadata);
        check_metadata(&changed.metadata, "metadata")?;
        if let Some(auth) = auth {
            auth.apply(&mut changed.auth, sent)?;
        }
        if changed == *current && sent.is_empty() {
            return Ok(None);
        }
        changed.updated_at = now;
        Ok(Some(changed))
    }
}

impl AuthUpdate {
    fn apply(self, stored: &mut CredentialAuth, sent: &[SecretField]) -> Parsed<()> {
        match (self, stored) {
            (
                Self::McpOauth { expires_at: new, refresh: update },
                CredentialAuth::McpOauth { expires_at, refresh, .. },
            ) => {
                match new {
                    Patch::Keep => {}
                    Patch::Clear => *expires_at = None,
                    Patch::Set(new) => *expires_at = Some(new),
                }
                let Some(update) = update else { return Ok(()) };
                let Some(refresh) = refresh else {
                    let rule =
                        "cannot be added: the credential was made without it; archive it and create another";
                    return Err(Invalid::new("auth.refresh", rule));
                };
                if sent.contains(&SecretField::ClientSecret)
                    && refresh.token_endpoint_auth == (TokenEndpointAuth::None {})
                {
                    let rule = "cannot be set: the credential's token endpoint takes no client secret";
                    return Err(Invalid::new("auth.refresh.token_endpoint_auth.client_secret", rule));
                }
                if let Some(scope) = update.scope {
                    refresh.scope = Some(scope).filter(|scope| !scope.is_empty());
                }
                Ok(())
            }
            (Self::StaticBearer, CredentialAuth::StaticBearer { .. }) => Ok(()),
            (
                Self::EnvironmentVariable { networking: new, injection_location: update },
                CredentialAuth::EnvironmentVariable { networking, injection_location, .. },
            ) => {
                if let Some(new) = new {
                    *networking = new;
                }
                if let Some(InjectionUpdate { header, body }) = update {
                    let merged = InjectionLocation {
                        header: header.unwrap_or(injection_location.header),
                        body: body.unwrap_or(injection_location.body),
                    };
                    *injection_location = somewhere(merged, "auth.injection_location")?;
                }
                Ok(())
            }
            _ => Err(Invalid::new("auth.type", "cannot be changed: it must be the credential's own type")),
        }
    }
}

/// The refusal of whatever an archived credential no longer takes.
pub fn archived_credential() -> Invalid {
    let rule = "the credential is archived and can no longer be changed";
    Invalid::new("credential_id", rule).with_code(CREDENTIAL_ARCHIVED)
}

const TYPES: [&str; 3] = ["mcp_oauth", "static_bearer", "environment_variable"];

fn new_auth(value: Value, path: &str, now: Timestamp, secrets: &mut Secrets) -> Parsed<CredentialAuth> {
    let mut fields = Fields::new(value, path)?;
    let auth = match quiet_tag(&mut fields, &TYPES)? {
        "mcp_oauth" => {
            secrets.insert(SecretField::AccessToken, fields.required("access_token", token(TOKEN_CHARS))?);
            CredentialAuth::McpOauth {
                mcp_server_url: fields.required("mcp_server_url", address)?,
                expires_at: fields.optional("expires_at", later_than(now))?,
                refresh: fields.optional("refresh", |value, path| new_refresh(value, path, secrets))?,
            }
        }
        "static_bearer" => {
            secrets.insert(SecretField::Token, fields.required("token", token(TOKEN_CHARS))?);
            CredentialAuth::StaticBearer { mcp_server_url: fields.required("mcp_server_url", address)? }
        }
        _ => {
            secrets.insert(
                SecretField::SecretValue,
                fields.required("secret_value", secret(SECRET_VALUE_CHARS))?,
            );
            CredentialAuth::EnvironmentVariable {
                secret_name: fields.required("secret_name", secret_name)?,
                networking: fields.required("networking", networking)?,
                injection_location: match fields.patch("injection_location", injection_update)? {
                    Patch::Keep => InjectionLocation { header: true, body: true },
                    Patch::Clear => return Err(fields.invalid("injection_location", NOT_NULL)),
                    Patch::Set(InjectionUpdate { header, body }) => {
                        let named = InjectionLocation {
                            header: header.unwrap_or(false),
                            body: body.unwrap_or(false),
                        };
                        somewhere(named, &fields.path_of("injection_location"))?
                    }
                },
            }
        }
    };
    fields.finish()?;
    Ok(auth)
}

fn new_refresh(value: Value, path: &str, secrets: &mut Secrets) -> Parsed<OauthRefresh> {
    let mut fields = Fields::new(value, path)?;
    secrets.insert(SecretField::RefreshToken, fields.required("refresh_token", secret(REFRESH_TOKEN_CHARS))?);
    let refresh = OauthRefresh {
        client_id: fields.required("client_id", text(CLIENT_ID_CHARS))?,
        token_endpoint: fields.required("token_endpoint", address)?,
        token_endpoint_auth: fields
            .required("token_endpoint_auth", |value, path| new_endpoint_auth(value, path, secrets))?,
        scope: fields.optional("scope", text(0..=SCOPE_CHARS_MAX))?.filter(|scope| !scope.is_empty()),
        resource: fields.optional("resource", text(RESOURCE_CHARS))?,
    };
    fields.finish()?;
    Ok(refresh)
}

fn new_endpoint_auth(value: Value, path: &str, secrets: &mut Secrets) -> Parsed<TokenEndpointAuth> {
    let mut fields = Fields::new(value, path)?;
    let auth = match quiet_tag(&mut fields, &["none", "client_secret_basic", "client_secret_post"])? {
        "none" => TokenEndpointAuth::None {},
        "client_secret_basic" => TokenEndpointAuth::ClientSecretBasic {},
        _ => TokenEndpointAuth::ClientSecretPost {},
    };
    if auth != (TokenEndpointAuth::None {}) {
        let client_secret = fields.required("client_secret", secret(CLIENT_SECRET_CHARS))?;
        secrets.insert(SecretField::ClientSecret, client_secret);
    }
    fields.finish()?;
    Ok(auth)
}

fn auth_update(value: Value, path: &str, now: Timestamp, secrets: &mut Secrets) -> Parsed<AuthUpdate> {
    let mut fields = Fields::new(value, path)?;
    let mut keep = |field: SecretField, given: Option<Secret>| {
        if let Some(given) = given {
            secrets.insert(field, given);
        }
    };
    let auth = match quiet_tag(&mut fields, &TYPES)? {
        "mcp_oauth" => {
            keep(SecretField::AccessToken, fields.optional("access_token", token(TOKEN_CHARS))?);
            AuthUpdate::McpOauth {
                expires_at: fields.patch("expires_at", later_than(now))?,
                refresh: fields.optional("refresh", |value, path| refresh_update(value, path, secrets))?,
            }
        }
        "static_bearer" => {
            keep(SecretField::Token, fields.optional("token", token(TOKEN_CHARS))?);
            AuthUpdate::StaticBearer
        }
        _ => {
            keep(SecretField::SecretValue, fields.optional("secret_value", secret(SECRET_VALUE_CHARS))?);
            AuthUpdate::EnvironmentVariable {
                networking: fields.optional("networking", networking)?,
                injection_location: match fields.patch("injection_location", injection_update)? {
                    Patch::Keep => None,
                    Patch::Clear => return Err(fields.invalid("injection_location", NOT_NULL)),
                    Patch::Set(update) => Some(update),
                },
            }
        }
    };
    refuse_immutable(&mut fields, &["mcp_server_url", "secret_name"])?;
    fields.finish()?;
    Ok(auth)
}

fn refresh_update(value: Value, path: &str, secrets: &mut Secrets) -> Parsed<RefreshUpdate> {
    let mut fields = Fields::new(value, path)?;
    if let Some(refresh_token) = fields.optional("refresh_token", secret(REFRESH_TOKEN_CHARS))? {
        secrets.insert(SecretField::RefreshToken, refresh_token);
    }
    let scope = fields.optional("scope", text(0..=SCOPE_CHARS_MAX))?;
    fields.optional("token_endpoint_auth", |value, path| endpoint_auth_update(value, path, secrets))?;
    refuse_immutable(&mut fields, &["token_endpoint", "client_id", "resource"])?;
    fields.finish()?;
    Ok(RefreshUpdate { scope })
}

/// The type is read and not kept: the stored one stays.
fn endpoint_auth_update(value: Value, path: &str, secrets: &mut Secrets) -> Parsed<()> {
    let mut fields = Fields::new(value, path)?;
    quiet_tag(&mut fields, &["client_secret_basic", "client_secret_post"])?;
    if let Some(client_secret) = fields.optional("client_secret", secret(CLIENT_SECRET_CHARS))? {
        secrets.insert(SecretField::ClientSecret, client_secret);
    }
    fields.finish()
}

fn refuse_immutable(fields: &mut Fields, names: &[&str]) -> Parsed<()> {
    for name in names {
        if fields.patch(name, |_, _| Ok(()))? != Patch::Keep {
            let rule = "cannot be changed; archive the credential and create another";
            return Err(fields.invalid(name, rule));
        }
    }
    Ok(())
}

const NOT_NULL: &str = "must not be null: omit the field instead";

fn injection_update(value: Value, path: &str) -> Parsed<InjectionUpdate> {
    let mut fields = Fields::new(value, path)?;
    let mut place = |name: &str| match fields.patch(name, boolean)? {
        Patch::Keep => Ok(None),
        Patch::Clear => Err(fields.invalid(name, NOT_NULL)),
        Patch::Set(is_enabled) => Ok(Some(is_enabled)),
    };
    let update = InjectionUpdate { header: place("header")?, body: place("body")? };
    fields.finish()?;
    Ok(update)
}

fn somewhere(location: InjectionLocation, path: &str) -> Parsed<InjectionLocation> {
    match location {
        InjectionLocation { header: false, body: false } => {
            Err(Invalid::new(path, "must have at least one of `header` and `body` true"))
        }
        location => Ok(location),
    }
}

fn networking(value: Value, path: &str) -> Parsed<CredentialNetworking> {
    let mut fields = Fields::new(value, path)?;
    let networking = match quiet_tag(&mut fields, &["unrestricted", "limited"])? {
        "unrestricted" => CredentialNetworking::Unrestricted {},
        _ => CredentialNetworking::Limited {
            allowed_hosts: fields.required("allowed_hosts", list(ALLOWED_HOSTS, allowed_host))?,
        },
    };
    fields.finish()?;
    Ok(networking)
}

/// A bare host name, an IPv4 address, or `*.` and a domain.
fn allowed_host(value: Value, path: &str) -> Parsed<String> {
    let host = text(HOST_CHARS)(value, path)?;
    let is_address = host.parse::<std::net::Ipv4Addr>().is_ok();
    if is_address || is_host(&host) {
        return Ok(host);
    }
    let rule = "must be a host name such as `api.example.com`, an IPv4 address, or `*.example.com`, without scheme, \
                port or path";
    Err(Invalid::new(path, rule))
}

/// The name of a variable, as POSIX has it. Names that tell a sandbox's programs where to find what they run must not
/// hold a placeholder.
fn secret_name(value: Value, path: &str) -> Parsed<String> {
    let name = text(SECRET_NAME_CHARS)(value, path)?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if !is_name {
        return Err(Invalid::new(path, "must be letters, digits and `_`, and not begin with a digit"));
    }
    if RESERVED.contains(&name.as_str()) || name.starts_with("POSTHOUSE_") || name.starts_with("LD_") {
        return Err(Invalid::new(path, "is the name of a variable that a sandbox needs itself"));
    }
    Ok(name)
}

/// What a sandbox sets itself, or its shell cannot do without.
const RESERVED: [&str; 12] = [
    "PATH",
    "HOME",
    "SHELL",
    "PWD",
    "IFS",
    "BASH_ENV",
    "ENV",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "TMPDIR",
];

/// The address of a server.
fn address(value: Value, path: &str) -> Parsed<String> {
    let url = text(URL_CHARS)(value, path)?;
    if normalized(&url).is_none() {
        let rule = "must be an http or https address with a host, and without a user or a password";
        return Err(Invalid::new(path, rule));
    }
    Ok(url)
}

fn later_than(now: Timestamp) -> impl Fn(Value, &str) -> Parsed<Timestamp> {
    move |value, path| {
        let at = match &value {
            Value::String(text) => Timestamp::parse(text),
            _ => None,
        };
        let at = at.ok_or_else(|| Invalid::new(path, "must be a time as RFC 3339 writes it"))?;
        if at <= now {
            return Err(Invalid::new(path, "must be in the future"));
        }
        Ok(at)
    }
}

/// A secret of so many characters.
fn secret(chars: RangeInclusive<usize>) -> impl Fn(Value, &str) -> Parsed<Secret> {
    move |value, path| text(chars.clone())(value, path).map(Secret::new)
}

/// A secret that goes into a header by itself, so that it must fit there.
fn token(chars: RangeInclusive<usize>) -> impl Fn(Value, &str) -> Parsed<Secret> {
    move |value, path| {
        let token = text(chars.clone())(value, path)?;
        if token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Secret::new(token));
        }
        drop(Secret::new(token));
        Err(Invalid::new(path, "must be printable ASCII without spaces: it becomes part of a header"))
    }
}

/// The object's `type`. Unlike [`Fields::tag`] it does not repeat what it got.
fn quiet_tag(fields: &mut Fields, allowed: &[&'static str]) -> Parsed<&'static str> {
    fields.required("type", |value, path| {
        let known = value.as_str().and_then(|text| allowed.iter().find(|known| **known == text));
        known.copied().ok_or_else(|| {
            let names: Vec<String> = allowed.iter().map(|name| format!("`{name}`")).collect();
            let got = if value.is_string() { "another" } else { kind_of(&value) };
            Invalid::new(path, format!("must be one of {}, not {got}", names.join(", ")))
        })
    })
}

#[cfg(test)]
mod tests;
