use serde_json::{Value, json};
use testkit::invariants::{check, check_at_rest, check_stream};

/// A log of these kinds and fields, with ids by place and times that grow; `null` for a time means queued.
fn log(events: &[Value]) -> Vec<Value> {
    let finish = |(index, event): (usize, &Value)| {
        let mut event = event.clone();
        let fields = event.as_object_mut().expect("an object");
        fields.entry("id").or_insert_with(|| json!(format!("sevt_{index}")));
        fields
            .entry("processed_at")
            .or_insert_with(|| json!(format!("2026-11-23T10:{:02}:{:02}.000000Z", index / 60, index % 60)));
        event
    };
    events.iter().enumerate().map(finish).collect()
}

/// A turn with one call, as the events of a session at rest.
fn turn() -> Vec<Value> {
    vec![
        json!({"type": "session.status_running"}),
        json!({"type": "session.thread_status_running", "session_thread_id": "sthr_1"}),
        json!({"type": "user.message"}),
        json!({"type": "span.model_request_start", "id": "start"}),
        json!({"type": "agent.tool_use", "id": "call"}),
        json!({"type": "span.model_request_end", "model_request_start_id": "start"}),
        json!({"type": "agent.tool_result", "tool_use_id": "call"}),
        json!({"type": "session.thread_status_idle", "session_thread_id": "sthr_1"}),
        json!({"type": "session.usage"}),
        json!({"type": "session.status_idle", "stop_reason": {"type": "end_turn"}}),
    ]
}

/// Breaks a rule.
type Spoil<'a> = &'a dyn Fn(&mut Vec<Value>);

#[test]
fn a_sound_log_passes_and_rests() {
    let mut events = turn();
    assert_eq!(check_at_rest(&log(&events)), Ok(()));
    events.push(json!({"type": "session.updated"}));
    events.push(json!({"type": "user.interrupt"}));
    assert_eq!(check_at_rest(&log(&events)), Ok(()));
    events.push(json!({"type": "user.message", "processed_at": null}));
    assert_eq!(check(&log(&events)), Ok(()));
    assert!(check_at_rest(&log(&events)).is_err_and(|text| text.contains("nobody takes it up")));
}

#[test]
fn a_log_that_is_not_over_is_sound_and_does_not_rest() {
    for length in 1..turn().len() {
        let part = log(&turn()[..length]);
        assert_eq!(check(&part), Ok(()), "{length} events");
        assert!(check_at_rest(&part).is_err(), "{length} events");
    }
}

#[test]
fn each_broken_rule_is_named() {
    let spoiled = |change: Spoil<'_>| {
        let mut events = turn();
        change(&mut events);
        check_at_rest(&log(&events)).expect_err("it is spoiled")
    };
    let cases: [(&str, Spoil<'_>); 12] = [
        ("G1", &|events| events[4]["processed_at"] = json!("2026-11-23T09:00:00.000000Z")),
        ("G3", &|events| events[2]["id"] = json!("call")),
        ("G4", &|events| events[7]["session_thread_id"] = json!("sthr_2")),
        ("G5", &|events| events[5]["model_request_start_id"] = json!("other")),
        ("G5", &|events| events.insert(4, json!({"type": "span.model_request_start"}))),
        ("G5", &|events| drop(events.remove(5))),
        ("G6", &|events| drop(events.remove(8))),
        ("G7", &|events| drop(events.remove(6))),
        ("G7", &|events| events.insert(7, json!({"type": "agent.tool_result", "tool_use_id": "call"}))),
        ("G8", &|events| events.insert(4, json!({"type": "event_start"}))),
        ("G9", &|events| {
            events.insert(3, json!({"type": "session.status_running"}));
            events.insert(4, json!({"type": "session.thread_status_running", "session_thread_id": "sthr_1"}));
        }),
        ("G13", &|events| events.insert(3, json!({"type": "session.status_terminated"}))),
    ];
    for (rule, change) in cases {
        let said = spoiled(change);
        assert!(said.starts_with(rule), "{rule}: {said}");
    }
}

#[test]
fn a_stream_that_misses_repeats_or_invents_an_event_is_found_out() {
    let list = log(&turn());
    assert_eq!(check_stream(&list, &list), Ok(()));
    let mut repeated = list.clone();
    repeated.insert(3, list[2].clone());
    let mut invented = list.clone();
    invented.push(json!({"type": "user.message", "id": "more"}));
    for shown in [&list[1..], &list[..5], &repeated, &invented] {
        assert!(check_stream(&list, shown).is_err_and(|text| text.starts_with("G2")));
    }
}
