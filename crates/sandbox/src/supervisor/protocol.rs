//! What a server and the supervisor say to each other.
//!
//! Frames as in [`tools::wire`]: a little-endian `u32` length, then JSON. The server writes [`Request`]s, the supervisor answers
//! each with one [`Response`] of the same id, in any order. The first request on a connection is [`Ask::Hello`].
//!
//! `Hello` and `End` keep their form for ever, so that a server can retire a supervisor of any version; anything else may
//! change together with [`PROTOCOL`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::admission::Capacity;
use crate::doctor::Report;
use crate::provider::{Error, Network, Occupancy, Pool, Resources, SandboxId, SandboxInfo, Saved};

/// The version spoken here.
pub(crate) const PROTOCOL: u32 = 5;

/// What a frame holds besides what it relays.
const ENVELOPE_BYTES_MAX: usize = 64 << 10;
/// The largest request.
pub(crate) const REQUEST_BYTES_MAX: usize = tools::wire::REQUEST_BYTES_MAX + ENVELOPE_BYTES_MAX;
/// The largest response.
pub(crate) const RESPONSE_BYTES_MAX: usize = tools::wire::RESPONSE_BYTES_MAX + ENVELOPE_BYTES_MAX;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) ask: Ask,
}

#[allow(clippy::large_enum_variant, reason = "made one at a time, and never kept")]
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Who I am. The answer says who the supervisor is; if the versions differ, nothing but `End` makes sense after it.
    Hello {
        protocol: u32,
        /// How long to stay without any server.
        #[serde(default)]
        idle_exit_ms: Option<u64>,
    },
    /// Destroy everything and end.
    End {},
    /// What does this machine allow?
    Report {},
    Provision {
        sandbox: SandboxId,
        fence: u64,
        resources: Resources,
        /// The key of the layer that is made in it, in whose unfinished folder it writes.
        #[serde(default)]
        layer: Option<String>,
    },
    /// Open a door for a sandbox that an engine of containers starts. Answered with [`Answer::Door`] as often as it is asked,
    /// until the sandbox lives.
    Adopt {
        sandbox: SandboxId,
        fence: u64,
        resources: Resources,
        /// The lowest of the ids that containers run with; whoever comes must have this one plus the door's slot. `None`
        /// where the engine translates ids, so that they cannot be foreseen.
        first_id: Option<u32>,
    },
    /// Answered when the sandbox that a door was opened for lives, or will not.
    Adopted {
        sandbox: SandboxId,
        fence: u64,
    },
    /// Hand this operation ([`tools::wire::Op`], not looked into) to the sandbox's `tools`.
    Relay {
        sandbox: SandboxId,
        /// `None` for what needs no lease.
        fence: Option<u64>,
        op: Box<RawValue>,
    },
    /// Write the private layer into this new file.
    Save {
        sandbox: SandboxId,
        fence: u64,
        into: PathBuf,
    },
    Destroy {
        sandbox: SandboxId,
    },
    List {},
    /// This machine is to hold so many. The last word counts.
    Hold {
        capacity: Capacity,
        /// Whether sandboxes that may install packages are to be expected: what those need first takes a second, and is
        /// better done now.
        #[serde(default)]
        will_install: bool,
    },
    /// These are to be kept ready as long as this connection lasts, in place of what was said on it before.
    KeepReady {
        pools: Vec<Pool>,
    },
    Occupancy {},
    /// From now on this connection brings exits, each as an [`Answer::Exit`] with the socket, and [`Answer::ExitEnded`].
    Exits {},
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Hello {
        protocol: u32,
        pid: u32,
    },
    Done {},
    Report(Report),
    /// What `tools` replied ([`tools::wire::Reply`], not looked into).
    Relayed(Box<RawValue>),
    List(Vec<SandboxInfo>),
    Occupancy(Occupancy),
    /// Mount this folder, and use the ids of this slot.
    Door {
        folder: PathBuf,
        slot: u32,
    },
    Saved(Saved),
    /// The socket comes with the frame's first byte.
    Exit {
        sandbox: SandboxId,
        network: Network,
    },
    ExitEnded {
        sandbox: SandboxId,
    },
    Failed(Error),
}

/// A request of `tools::wire` around an operation that is not looked into.
#[derive(Serialize)]
pub(crate) struct RelayedRequest<'a> {
    pub(crate) id: u64,
    pub(crate) op: &'a RawValue,
}

/// A response of `tools::wire` around a reply that is not looked into.
#[derive(Deserialize)]
pub(crate) struct RelayedResponse<'a> {
    pub(crate) id: u64,
    #[serde(borrow)]
    pub(crate) reply: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_version_must_understand_is_spelled_as_ever() {
        let request = |ask| serde_json::to_string(&Request { id: 7, ask }).unwrap();
        assert_eq!(
            request(Ask::Hello { protocol: 9, idle_exit_ms: None }),
            r#"{"id":7,"ask":{"hello":{"protocol":9,"idle_exit_ms":null}}}"#
        );
        assert_eq!(request(Ask::End {}), r#"{"id":7,"ask":{"end":{}}}"#);
        let hello: Response =
            serde_json::from_str(r#"{"id":7,"answer":{"hello":{"protocol":9,"pid":1,"new":true}}}"#).unwrap();
        assert!(matches!(hello.answer, Answer::Hello { protocol: 9, pid: 1 }));
    }

    #[test]
    fn a_relayed_operation_keeps_its_bytes() {
        let op = r#"{"execute":{"call_id":"a","name":"bash","input":{"command":"ls  "},"timeout_ms":1}}"#;
        let ask = Ask::Relay {
            sandbox: SandboxId::parse("a").unwrap(),
            fence: Some(1),
            op: RawValue::from_string(op.to_owned()).unwrap(),
        };
        let text = serde_json::to_string(&Request { id: 1, ask }).unwrap();
        let Ask::Relay { op: again, .. } = serde_json::from_str::<Request>(&text).unwrap().ask else {
            panic!("{text}")
        };
        assert_eq!(again.get(), op);
    }
}
