//! A CONNECT that was allowed: bytes both ways, after a look at how TLS begins.
//!
//! The look is on port 443, and others of which the operator says so. It makes sure that the name which TLS asks for is the name that was decided upon; the
//! answers are:
//!
//! | ClientHello | limited | unrestricted |
//! |---|---|---|
//! | names the host of the CONNECT | passes | passes |
//! | names another host | refused | refused, so that the log names what was reached |
//! | names none | refused: the far side would choose; passes if the CONNECT was to an address | passes |
//! | names a host, and the CONNECT was to an address | passes if the policy allows that host | passes |
//! | may hide another (ECH) | refused: a front would follow the hidden name | passes |
//! | is none, or does not come | refused | passes: everything public may be reached, so nothing is guarded by refusing SSH on 443 |
//!
//! Clients that send noise in the place of ECH (browsers built on Chromium do unless told not to) are refused in limited
//! mode, because noise and secret look the same. On other ports, which an operator has opened, nothing is looked at: what
//! is spoken there may begin with the server. CONNECT to port 80 is refused before in limited mode.
//!
//! To a host to which the sandbox may spend secrets, [`intercept`] takes over after that look.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::Answer;
use super::exchange::linger;
use super::hello::{Hello, Reader};
use super::intercept::{self, HTTP1, HTTP2, Intercept};
use super::meter::Metered;
use super::{Served, Uninspected};
use crate::host::Host;
use crate::policy::Policy;

/// The longest ClientHello. With post-quantum keys and a resumed session they come to three thousand bytes.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// How much is read at once.
const READ_BYTES: usize = 4 * 1024;
/// How long a refused client is given to take the alert.
const ALERT_TIME_MAX: Duration = Duration::from_secs(2);
/// A TLS record with a fatal alert, `access_denied`: clients show its name.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// A CONNECT that was allowed and answered.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) far: Metered,
}

/// Carries a tunnel to its end. `early` is what came right behind the CONNECT.
pub(super) async fn run(
    served: Arc<Served>,
    mut near: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    early: Bytes,
    Tunnel { mut far }: Tunnel,
) {
    let (host, port) = (far.visit().host.clone(), far.visit().port);
    let first = if served.tls_ports.contains(&port) {
        let begun = match greeting(&served, &host, &mut near, early).await {
            Ok((first, hello)) => {
                interception(&served, &host, hello.as_ref()).await.map(|intercept| (first, intercept))
            }
            Err(refused) => Err(refused),
        };
        match begun {
            Ok((first, Some(intercept))) => {
                return intercept::run(served, near, first, far, intercept).await;
            }
            Ok((first, None)) => first,
            Err(refused) => {
                let answer = Answer::new(StatusCode::FORBIDDEN, refused.rule, "");
                served.log_denial("CONNECT", Some((&host, port)), &answer, Some(far.visit().address));
                drop(far);
                if refused.is_tls && timeout(ALERT_TIME_MAX, near.write_all(&ACCESS_DENIED)).await.is_err() {
                    return;
                }
                linger(near).await;
                return;
            }
        }
    } else {
        early.to_vec()
    };
    let meter = far.visit().meter.clone();
    let carrying = async {
        far.write_all(&first).await?;
        // Passes on that one side has finished, and waits for the other.
        copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        carried = carrying => {
            if let Err(error) = carried {
                tracing::debug!(target: "egress", %error, "a tunnel out of a sandbox broke");
            }
        }
        () = meter.idle(served.limits.idle_time_max) => {}
    }
}

/// Why a tunnel is closed before it carries anything.
struct Refused {
    rule: &'static str,
    is_tls: bool,
}

/// What takes the place of this tunnel, if secrets may be spent to the host.
async fn interception(
    served: &Served,
    host: &Host,
    hello: Option<&Hello>,
) -> Result<Option<Intercept>, Refused> {
    let (Some(edge), Some(hello)) = (&served.edge, hello) else { return Ok(None) };
    if served.uninspected_hosts.iter().any(|pattern| pattern.covers(host)) {
        return Ok(None);
    }
    // A name within the name could be any. For an address no name is asked.
    let is_named = match (host, hello.server_name.as_deref()) {
        (Host::Name(_), Some(name)) => Host::parse(name).as_ref() == Ok(host),
        (Host::Address(_), None) => true,
        (Host::Name(_), None) | (Host::Address(_), Some(_)) => false,
    };
    if !is_named || hello.may_hide_another {
        return Ok(None);
    }
    let unavailable = |error: &dyn std::fmt::Display| {
        tracing::error!(
            target: "egress",
            { sandbox.id = %served.who.sandbox, %host, %error },
            "a tunnel is refused"
        );
        Refused { rule: "credentials_unavailable", is_tls: true }
    };
    if edge.replacements(host).await.map_err(|error| unavailable(&error))?.is_empty() {
        return Ok(None);
    }
    let offered: Vec<Vec<u8>> = match &hello.protocols {
        None => Vec::new(),
        Some(named) => {
            named.iter().filter(|name| [HTTP1, HTTP2].contains(&name.as_slice())).cloned().collect()
        }
    };
    if hello.protocols.is_some() && offered.is_empty() {
        return match served.uninspected {
            Uninspected::Pass => Ok(None),
            Uninspected::Refuse => Err(Refused { rule: "not_http", is_tls: true }),
        };
    }
    let authority = edge.authority().await.map_err(|error| unavailable(&error))?;
    let certified = authority.certified(host).map_err(|error| unavailable(&error))?;
    Ok(Some(Intercept { edge: Arc::clone(edge), certified, offered }))
}

/// Reads how the near side begins and judges it. Returns what was read.
async fn greeting(
    served: &Served,
    host: &Host,
    near: &mut (impl AsyncRead + Unpin),
    early: Bytes,
) -> Result<(Vec<u8>, Option<Hello>), Refused> {
    let deadline = Instant::now() + served.limits.hello_time_max;
    let mut reader = Reader::new();
    let mut more = early.to_vec();
    let hello = loop {
        match reader.read(&more) {
            Ok(Some(hello)) => break Ok(hello),
            Ok(None) if reader.bytes().len() > HELLO_BYTES_MAX => break Err("hello_size"),
            Ok(None) => {}
            Err(_) => break Err("not_tls"),
        }
        more.clear();
        more.reserve(READ_BYTES);
        match timeout_at(deadline, near.read_buf(&mut more)).await {
            Err(_) => break Err("hello_timeout"),
            Ok(Err(_) | Ok(0)) => break Err("no_hello"),
            Ok(Ok(_)) => {}
        }
    };
    let judged = match hello {
        Ok(hello) => match judge(&served.policy, host, &hello) {
            Ok(()) => Ok(Some(hello)),
            Err(rule) => Err(Refused { rule, is_tls: true }),
        },
        Err(rule) if served.policy.is_limited() => Err(Refused { rule, is_tls: false }),
        Err(_) => Ok(None),
    };
    judged.map(|hello| (reader.bytes().to_vec(), hello))
}

fn judge(policy: &Policy, host: &Host, hello: &Hello) -> Result<(), &'static str> {
    let Hello { server_name, may_hide_another, protocols: _ } = hello;
    if *may_hide_another && policy.is_limited() {
        return Err("hidden_name");
    }
    let named = match server_name.as_deref().map(Host::parse) {
        Some(Ok(named)) => Some(named),
        Some(Err(_)) => return Err("server_name"),
        None => None,
    };
    match (host, named) {
        (Host::Name(_), Some(named)) if named == *host => Ok(()),
        (Host::Name(_), Some(_)) => Err("server_name"),
        (Host::Name(_), None) if policy.is_limited() => Err("no_server_name"),
        (Host::Address(_), Some(named)) => policy.decide(&named).map(drop).map_err(|_| "server_name"),
        (Host::Name(_) | Host::Address(_), None) => Ok(()),
    }
}
