//! Which models there are: what `GET /v1/models` lists and which names a session may run.
//!
//! Given by whoever starts the server. The door knows no provider and no key.

use protocol::model::ModelInfo;

/// The models of a server.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// What is listed.
    pub models: Vec<ModelInfo>,
    /// Which names a provider serves. The first rule that matches holds.
    pub rules: Vec<ModelRule>,
}

/// A set of model names that a provider serves.
#[derive(Clone, Debug)]
pub struct ModelRule {
    /// A name; `*` stands for any run of characters.
    pub pattern: String,
    /// Whether these models take a `system.message` in the middle of a conversation.
    pub has_mid_conversation_system: bool,
}

impl Catalog {
    /// Whether a provider serves the model.
    pub fn resolves(&self, name: &str) -> bool {
        self.rule(name).is_some()
    }

    /// Whether the model takes a `system.message` in the middle of a conversation.
    pub fn has_mid_conversation_system(&self, name: &str) -> bool {
        self.rule(name).is_some_and(|rule| rule.has_mid_conversation_system)
    }

    fn rule(&self, name: &str) -> Option<&ModelRule> {
        self.rules.iter().find(|rule| matches(&rule.pattern, name))
    }
}

/// Whether the name fits the pattern. Each run between stars is found as early as it can be, which is enough.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match name.find(part) {
            Some(start) => name = &name[start + part.len()..],
            None => return false,
        }
    }
    name.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name) in [
            ("a", "a"),
            ("*", ""),
            ("*", "x"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("*-b*", "a-bc"),
            ("a**c", "abc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "b"), ("a*", "b"), ("a*a", "a"), ("a*b*c", "a-c-b"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_holds() {
        let rule = |pattern: &str, has_mid_conversation_system| ModelRule {
            pattern: pattern.to_owned(),
            has_mid_conversation_system,
        };
        let catalog = Catalog { models: Vec::new(), rules: vec![rule("m-old", false), rule("m-*", true)] };
        assert!(catalog.has_mid_conversation_system("m-new"));
        assert!(!catalog.has_mid_conversation_system("m-old"));
        assert!(catalog.resolves("m-old") && !catalog.resolves("n"));
    }
}
