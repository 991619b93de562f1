//! What a session brings.

use std::collections::BTreeMap;

use tools::wire::{Op, Refusal, Reply};

use crate::hands::Hands;

fn equip(variables: &[(&str, &str)]) -> Op {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Op::Equip { variables: variables.collect::<BTreeMap<_, _>>(), trusted: None }
}

#[test]
fn a_shell_has_the_variables_that_the_session_brought() {
    let mut hands = Hands::with_environment(&[("LANG", "C")]);
    assert_eq!(hands.ask(equip(&[("TOKEN", "a b=c"), ("LANG", "C.UTF-8")])), Reply::Equipped);
    assert_eq!(hands.sh("printenv TOKEN LANG"), "a b=c\nC.UTF-8");
}

#[test]
fn what_is_brought_later_is_for_later_shells() {
    let mut hands = Hands::new();
    assert_eq!(hands.sh("echo ${TOKEN-none}"), "none");
    assert_eq!(hands.ask(equip(&[("TOKEN", "x")])), Reply::Equipped);
    assert_eq!(hands.sh("echo ${TOKEN-none}"), "none");
    hands.good("bash", serde_json::json!({"restart": true}));
    assert_eq!(hands.sh("echo ${TOKEN-none}"), "x");
}

#[test]
fn what_is_no_variable_is_refused_and_nothing_is_brought() {
    let mut hands = Hands::new();
    let refused = hands.ask(equip(&[("A", "1"), ("B=C", "2")]));
    assert!(matches!(refused, Reply::Refused { reason: Refusal::Invalid, .. }), "{refused:?}");
    assert_eq!(hands.sh("echo ${A-none}"), "none");
}
