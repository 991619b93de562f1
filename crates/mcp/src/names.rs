//! What a server's tools are called before a model.
//!
//! Models take letters, digits, `_` and `-`, at most 64 of them with some providers. A name is `mcp__<server>__<tool>`; one
//! that had to be changed, or that two tools would have, ends with a piece of a digest of both names. So a name hangs on
//! server and tool, not on the order in which servers list theirs, and no server can give its tool another's name: built-in
//! and custom tools never begin with `mcp__`, and what is still taken is left out.

use std::collections::HashSet;

use ring::digest::{SHA256, digest};

/// The prefix of all of them. Custom tools may not begin with it.
const PREFIX: &str = "mcp__";
const CHARS_MAX: usize = 64;
/// Of the digest, in hexadecimal.
const DIGEST_CHARS: usize = 8;

/// A tool with its name before the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Unique among all that were named together.
    pub name: String,
    /// Which of the servers, by its place.
    pub server: usize,
    /// The tool, by the server's own name.
    pub tool: &'a str,
}

/// Names the tools of some servers: servers in the order given, tools in the order of their names. The same servers and
/// tools always give the same names in the same order. A tool that a server lists twice is there once.
pub fn named<'a>(servers: &[(&str, Vec<&'a str>)]) -> Vec<Named<'a>> {
    let mut plain = Vec::new();
    for (index, (server, tools)) in servers.iter().enumerate() {
        let mut tools = tools.clone();
        tools.sort_unstable();
        tools.dedup();
        plain.extend(tools.into_iter().map(|tool| (index, *server, tool, plain_name(server, tool))));
    }
    let mut once = HashSet::new();
    let mut twice = HashSet::new();
    for (.., name) in &plain {
        if let Some(name) = name
            && !once.insert(name.clone())
        {
            twice.insert(name.clone());
        }
    }
    // The plain ones first: a digest that hits one of them is the accident, or the attack.
    let mut taken: HashSet<String> = once.difference(&twice).cloned().collect();
    let mut all = Vec::with_capacity(plain.len());
    for (index, server, tool, name) in plain {
        let name = match name {
            Some(name) if !twice.contains(&name) => name,
            Some(_) | None => {
                let name = digested_name(server, tool);
                if !taken.insert(name.clone()) {
                    tracing::warn!(server, tool, "a tool is left out: its name is taken");
                    continue;
                }
                name
            }
        };
        all.push(Named { name, server: index, tool });
    }
    all
}

/// The name that needs no change.
fn plain_name(server: &str, tool: &str) -> Option<String> {
    let name = format!("{PREFIX}{server}__{tool}");
    (name.len() <= CHARS_MAX && name.bytes().all(is_allowed)).then_some(name)
}

fn digested_name(server: &str, tool: &str) -> String {
    // Neither name holds a NUL that could be moved from one to the other unseen: lengths go in, too.
    let both = format!("{}:{server}:{tool}", server.len());
    let digest: String =
        digest(&SHA256, both.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let room = CHARS_MAX - DIGEST_CHARS - 1;
    let name = format!("{PREFIX}{server}__{tool}");
    let kept: String = name
        .chars()
        .map(|char| if u8::try_from(char).is_ok_and(is_allowed) { char } else { '_' })
        .take(room)
        .collect();
    format!("{kept}_{}", &digest[..DIGEST_CHARS])
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(servers: &[(&str, Vec<&str>)]) -> Vec<String> {
        named(servers).into_iter().map(|named| named.name).collect()
    }

    #[test]
    fn usual_names_are_left_as_they_are_and_sorted() {
        let servers = [("linear", vec!["search", "get-issue"]), ("github", vec!["search"])];
        assert_eq!(names(&servers), ["mcp__linear__get-issue", "mcp__linear__search", "mcp__github__search"]);
    }

    #[test]
    fn a_name_hangs_on_server_and_tool_and_not_on_what_else_is_listed() {
        let (alone, others) = (names(&[("my server", vec!["a tool"])]), ["z", "a tool", "b"]);
        let together = names(&[("my server", others.to_vec())]);
        assert!(alone[0].starts_with("mcp__my_server__a_tool_"), "{alone:?}");
        assert!(together.contains(&alone[0]), "{together:?}");
    }

    #[test]
    fn every_name_suits_models_and_is_there_once() {
        let long = "x".repeat(200);
        let servers = [
            ("a", vec!["b__c", "b__c", "ü", "", &long]),
            ("a__b", vec!["c", "ö", "../../bash"]),
            (&long[..100], vec!["c"]),
        ];
        let all = names(&servers);
        assert_eq!(all.len(), 8, "{all:?}");
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 8, "{all:?}");
        for name in all {
            assert!(name.len() <= CHARS_MAX && name.bytes().all(is_allowed), "{name}");
            assert!(name.starts_with(PREFIX), "{name}");
        }
    }

    #[test]
    fn a_tool_cannot_take_the_name_that_another_gets() {
        let theirs = names(&[("a", vec!["b__c"]), ("a__b", vec!["c"])]);
        let stolen = theirs[1].strip_prefix("mcp__a__").expect("both begin so");
        let all =
            named(&[("a", vec!["b__c", stolen]), ("a__b", vec!["c"])].map(|(server, tools)| (server, tools)));
        let owners: Vec<usize> =
            all.iter().filter(|named| named.name == theirs[1]).map(|named| named.server).collect();
        assert!(owners.len() <= 1, "{all:?}");
    }
}
