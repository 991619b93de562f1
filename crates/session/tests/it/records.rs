//! Update, archive and delete (flow table J).

use protocol::agent::{
    AgentSpec, AgentTag, CustomTool, Effort, EffortLevel, ExecutionIdentity, ModelConfig, SessionAgent,
    Speed, Tool,
};
use protocol::environment::EnvironmentConfig;
use protocol::event::Body;
use protocol::id::{AgentId, EnvironmentId, SessionId};
use protocol::parse::Patch;
use protocol::session::Status;
use protocol::session_request::AgentChange;
use protocol::time::Timestamp;
use serde_json::json;
use session::record::{Record, Update, may_delete};

use crate::world::{Say, World, message};

fn record() -> Record {
    let at = Timestamp::from_micros(1_000_000);
    let model = ModelConfig {
        id: "m".to_owned(),
        effort: Effort { level: EffortLevel::High },
        speed: Speed::Standard,
        inference_geo: None,
    };
    let spec = AgentSpec {
        name: "helper".to_owned(),
        description: None,
        model,
        system: None,
        tools: Vec::new(),
        mcp_servers: Vec::new(),
        skills: Vec::new(),
        multiagent: None,
        execution_identity: ExecutionIdentity::ServiceAccount {},
    };
    Record {
        id: SessionId::from_text("sesn_1"),
        agent: SessionAgent { tag: AgentTag::Agent, id: AgentId::from_text("agent_1"), version: 1, spec },
        environment_id: EnvironmentId::from_text("env_1"),
        hands: protocol::hands::HandsSettings::default(),
        environment: EnvironmentConfig::SelfHosted {},
        title: None,
        metadata: [("a".to_owned(), "1".to_owned())].into(),
        vault_ids: Vec::new(),
        resources: Vec::new(),
        created_at: at,
        updated_at: at,
        archived_at: None,
    }
}

fn shown(body: Option<Body>) -> serde_json::Value {
    serde_json::to_value(body).expect("writes")
}

fn metadata(changes: &[(&str, Option<&str>)]) -> Update {
    let metadata = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    Update { metadata, ..Update::default() }
}

#[test]
fn j1_only_what_changed_is_shown() {
    let (mut record, world) = (record(), World::new());
    let update = Update { title: Patch::Set("new".to_owned()), ..metadata(&[("b", Some("2"))]) };
    let event = record.update(&world.state, update).expect("accepted");
    assert_eq!(
        shown(event),
        json!({"type": "session.updated", "title": "new", "metadata": {"a": "1", "b": "2"}})
    );
}

#[test]
fn j2_j3_a_cleared_metadata_is_absent_from_the_event() {
    let (mut record, world) = (record(), World::new());
    record.update(&world.state, metadata(&[("b", Some("2"))])).expect("accepted");
    let event = record.update(&world.state, metadata(&[("a", None)])).expect("accepted");
    assert_eq!(shown(event), json!({"type": "session.updated", "metadata": {"b": "2"}}));
    let event = record.update(&world.state, metadata(&[("b", None)])).expect("accepted");
    assert_eq!(shown(event), json!({"type": "session.updated"}));
    assert!(record.metadata.is_empty());
}

#[test]
fn j4_a_change_of_nothing_shows_nothing() {
    let (mut record, world) = (record(), World::new());
    assert_eq!(record.update(&world.state, metadata(&[("a", Some("1"))])).expect("accepted"), None);
    assert_eq!(record.update(&world.state, Update::default()).expect("accepted"), None);
}

#[test]
fn j5_j6_tools_change_only_while_idle() {
    let (mut record, mut world) = (record(), World::new());
    let tool = CustomTool {
        name: "t".to_owned(),
        description: "d".to_owned(),
        input_schema: serde_json::Map::new(),
    };
    let agent = AgentChange { tools: Some(vec![Tool::Custom(tool)]), ..AgentChange::default() };
    let update = Update { agent, ..Update::default() };
    world.send(vec![message("hi")]).expect("accepted");
    assert!(record.update(&world.state, update.clone()).is_err(), "input that waits counts as running");
    world.go();
    assert!(record.update(&world.state, update.clone()).is_err());
    world.answer(&[Say::Text("hello")]);
    let event = record.update(&world.state, update).expect("idle").expect("changed");
    assert!(matches!(event, Body::Updated { agent: Some(_), metadata: None, title: None }));
}

#[test]
fn j8_j9_only_a_session_at_rest_is_archived_and_only_once() {
    let (mut record, mut world) = (record(), World::new());
    let now = Timestamp::from_micros(9_000_000);
    world.send(vec![message("hi")]).expect("accepted");
    world.go();
    assert!(record.archive(&world.state, now).is_err());
    assert!(may_delete(&world.state).is_err());
    world.answer(&[Say::Text("hello")]);
    let kinds: Vec<_> =
        record.archive(&world.state, now).expect("idle").iter().map(|body| body.kind().to_owned()).collect();
    assert_eq!(kinds, ["session.thread_status_terminated", "session.status_terminated"]);
    assert_eq!(record.archive(&world.state, now).expect("again"), Vec::new());
}

#[test]
fn what_waits_for_a_brain_is_shown_as_running() {
    let (record, mut world) = (record(), World::new());
    let now = Timestamp::from_micros(9_000_000);
    assert_eq!(record.show(&world.state, now).status, Status::Idle);
    world.send(vec![message("hi")]).expect("accepted");
    assert_eq!(record.show(&world.state, now).status, Status::Running);
    let thread = record.show_thread(&world.state, now);
    assert_eq!((thread.stats, thread.usage), (None, None));
    world.go();
    world.answer(&[Say::Text("hello")]);
    assert_eq!(record.show(&world.state, now).status, Status::Idle);
    let thread = record.show_thread(&world.state, now);
    assert!(thread.stats.is_some() && thread.usage.is_some());
}
