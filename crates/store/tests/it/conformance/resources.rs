//! Agents, environments, keys.

use std::time::Duration;

use protocol::agent::Agent;
use protocol::id::{AgentId, EnvironmentId};
use protocol::parse::Invalid;
use store::{AgentQuery, ChangeError, Cursor, EnvironmentQuery, Error, TimeBounds, hash_key};

use crate::world::{World, agent, environment, soon};

async fn make_agent(world: &World) -> Agent {
    let agent = agent(&world.id(), world.store.now());
    world.store.create_agent(&world.workspace, agent).await.expect("made")
}

fn renamed(agent: &Agent, name: &str, version: i64) -> Agent {
    let mut changed = agent.clone();
    changed.spec.name = name.to_owned();
    changed.version = version;
    changed
}

async fn rename(world: &World, id: &AgentId, name: &str) -> Agent {
    let name = name.to_owned();
    let change = Box::new(move |agent: &Agent| Ok(Some(renamed(agent, &name, agent.version + 1))));
    world.store.change_agent(&world.workspace, id, change).await.expect("changed")
}

pub(crate) async fn an_agent_keeps_its_versions(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let first = make_agent(world).await;
    let again = store.create_agent(workspace, first.clone()).await;
    assert!(matches!(again, Err(Error::Exists(_))));
    let second = rename(world, &first.id, "two").await;
    let third = rename(world, &first.id, "three").await;
    let get = async |version| store.get_agent(workspace, &first.id, version).await.expect("works");
    assert_eq!(get(None).await.as_ref(), Some(&third));
    assert_eq!(get(Some(1)).await.as_ref(), Some(&first));
    assert_eq!(get(Some(2)).await.as_ref(), Some(&second));
    assert_eq!(get(Some(4)).await, None);
    let versions = async |before, limit| store.list_agent_versions(workspace, &first.id, before, limit).await;
    let all = versions(None, 20).await.expect("works");
    assert_eq!(all, Some(vec![third.clone(), second.clone(), first.clone()]));
    assert_eq!(versions(Some(3), 1).await.expect("works"), Some(vec![second]));
    let unknown = store.list_agent_versions(workspace, &world.id(), None, 20).await.expect("works");
    assert_eq!(unknown, None);
    // Archiving changes the version that is there; no change leaves it alone; a refusal changes nothing.
    let now = store.now();
    let archive = Box::new(move |agent: &Agent| Ok(Some(Agent { archived_at: Some(now), ..agent.clone() })));
    let archived = store.change_agent(workspace, &first.id, archive).await.expect("archived");
    assert_eq!((archived.version, archived.archived_at), (3, Some(now)));
    let same = store.change_agent(workspace, &first.id, Box::new(|_| Ok(None))).await.expect("unchanged");
    assert_eq!(same, archived);
    let refusal = Box::new(|_: &Agent| Err(Invalid::new("name", "no").into()));
    let refused = store.change_agent(workspace, &first.id, refusal).await;
    assert!(matches!(refused, Err(ChangeError::Refused(_))));
    assert_eq!(get(None).await, Some(archived));
}

pub(crate) async fn agents_are_listed_at_their_latest(world: &World) {
    let mut latest = Vec::new();
    for _ in 0..4 {
        latest.push(make_agent(world).await);
        world.clock.advance(Duration::from_secs(1));
    }
    latest[1] = rename(world, &latest[1].id, "two").await;
    latest.reverse();
    let list = async |query| world.store.list_agents(&world.workspace, query).await.expect("works");
    assert_eq!(list(AgentQuery::default()).await, latest);
    let after = Some(Cursor::new(latest[1].created_at, latest[1].id.as_str()));
    assert_eq!(list(AgentQuery { after, limit: 1, ..AgentQuery::default() }).await, latest[2..3]);
    let created = TimeBounds { gte: Some(latest[1].created_at), ..TimeBounds::default() };
    assert_eq!(list(AgentQuery { created, ..AgentQuery::default() }).await, latest[..2]);
    let now = world.store.now();
    let archive = Box::new(move |agent: &Agent| Ok(Some(Agent { archived_at: Some(now), ..agent.clone() })));
    world.store.change_agent(&world.workspace, &latest[0].id, archive).await.expect("archived");
    assert_eq!(list(AgentQuery::default()).await, latest[1..]);
    let all = list(AgentQuery { include_archived: true, ..AgentQuery::default() }).await;
    assert_eq!(all.len(), 4);
}

pub(crate) async fn a_version_cannot_be_skipped(world: &World) {
    let agent = make_agent(world).await;
    let skip = Box::new(|agent: &Agent| Ok(Some(renamed(agent, "new", agent.version + 2))));
    let refused = world.store.change_agent(&world.workspace, &agent.id, skip).await;
    assert!(matches!(refused, Err(ChangeError::Conflict(_))));
    assert_eq!(world.store.get_agent(&world.workspace, &agent.id, None).await.expect("works"), Some(agent));
}

pub(crate) async fn a_change_that_panics_harms_nobody(world: &World) {
    let agent = make_agent(world).await;
    let panicking = tokio::spawn({
        let (store, workspace, id) = (world.store.clone(), world.workspace.clone(), agent.id.clone());
        async move { store.change_agent(&workspace, &id, Box::new(|_| panic!("a bug of the caller"))).await }
    });
    assert!(soon(panicking).await.expect_err("the panic comes back").is_panic());
    rename(world, &agent.id, "two").await;
}

pub(crate) async fn an_environments_name_is_unique_until_it_is_archived(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let make = |name: &str| environment(&world.id(), name, world.store.now());
    let first = store.create_environment(workspace, make("a")).await.expect("made");
    let taken = store.create_environment(workspace, make("a")).await;
    assert!(matches!(taken, Err(ChangeError::Exists)));
    let second = store.create_environment(workspace, make("b")).await.expect("made");
    store.create_environment(&world.id(), make("a")).await.expect("another workspace's");
    let rename = |name: &'static str| {
        Box::new(move |environment: &protocol::environment::Environment| {
            Ok(Some(protocol::environment::Environment { name: name.to_owned(), ..environment.clone() }))
        })
    };
    let taken = store.change_environment(workspace, &second.id, rename("a")).await;
    assert!(matches!(taken, Err(ChangeError::Exists)));
    assert_eq!(store.get_environment(workspace, &second.id).await.expect("works"), Some(second.clone()));
    let kept = store.change_environment(workspace, &second.id, rename("b")).await.expect("its own name");
    assert_eq!(kept, second);
    let now = store.now();
    let archive = Box::new(move |environment: &protocol::environment::Environment| {
        Ok(Some(protocol::environment::Environment { archived_at: Some(now), ..environment.clone() }))
    });
    store.change_environment(workspace, &first.id, archive).await.expect("archived");
    let renamed = store.change_environment(workspace, &second.id, rename("a")).await.expect("free again");
    assert_eq!(renamed.name, "a");
}

pub(crate) async fn an_environment_in_use_is_not_deleted(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let used = environment(&EnvironmentId::from_text("env_1"), "used", store.now());
    store.create_environment(workspace, used.clone()).await.expect("made");
    let session = world.session().await;
    store.archive_session(workspace, &session).await.expect("archived");
    let refused = store.delete_environment(workspace, &used.id).await;
    assert!(matches!(refused, Err(ChangeError::InUse)));
    store.delete_session(workspace, &session).await.expect("deleted");
    store.delete_environment(workspace, &used.id).await.expect("deleted");
    assert_eq!(store.get_environment(workspace, &used.id).await.expect("works"), None);
    assert!(matches!(store.delete_environment(workspace, &used.id).await, Err(ChangeError::NotFound)));
}

pub(crate) async fn environments_are_paged(world: &World) {
    let mut made = Vec::new();
    for index in 0..5 {
        let environment = environment(&world.id(), &index.to_string(), world.store.now());
        made.push(world.store.create_environment(&world.workspace, environment).await.expect("made"));
    }
    made.reverse();
    let list = async |query| world.store.list_environments(&world.workspace, query).await.expect("works");
    let first = list(EnvironmentQuery { limit: 3, ..EnvironmentQuery::default() }).await;
    let after = first.last().map(|last| Cursor::new(last.created_at, last.id.as_str()));
    let second = list(EnvironmentQuery { limit: 3, after, ..EnvironmentQuery::default() }).await;
    assert_eq!([first, second].concat(), made);
}

pub(crate) async fn environments_that_ask_for_a_pool_are_found(world: &World) {
    let store = &world.store;
    let make = async |name: &str, policy: &str, archived: bool| {
        let mut environment = environment(&world.id(), name, store.now());
        environment.description = Some("\"posthouse.policy\":\"pool\"".to_owned());
        environment.metadata.insert("posthouse.policy".to_owned(), policy.to_owned());
        environment.archived_at = archived.then(|| store.now());
        store.create_environment(&world.workspace, environment).await.expect("made").id
    };
    let pooled = make("pooled", "pool", false).await;
    let others = [make("lazy", "lazy", false).await, make("archived", "pool", true).await];
    let found = store.pooled_environments().await.expect("works");
    let ids: Vec<_> = found.iter().map(|(environment, _)| &environment.id).collect();
    assert!(ids.contains(&&pooled), "{ids:?}");
    assert!(others.iter().all(|other| !ids.contains(&other)), "{ids:?}");
    let (_, settings) = found.iter().find(|(environment, _)| environment.id == pooled).expect("found");
    assert_eq!(settings.policy, protocol::hands::Policy::Pool { size: 1 });
}

pub(crate) async fn resources_are_seen_by_their_workspace_only(world: &World) {
    let (store, workspace, other) = (&world.store, &world.workspace, &world.id());
    let agent = make_agent(world).await;
    let environment = environment(&world.id(), "a", store.now());
    store.create_environment(workspace, environment.clone()).await.expect("made");
    assert!(store.get_agent(other, &agent.id, None).await.expect("works").is_none());
    assert!(store.list_agents(other, AgentQuery::default()).await.expect("works").is_empty());
    assert!(store.list_agent_versions(other, &agent.id, None, 9).await.expect("works").is_none());
    let changed = store.change_agent(other, &agent.id, Box::new(|_| Ok(None))).await;
    assert!(matches!(changed, Err(ChangeError::NotFound)));
    assert!(store.get_environment(other, &environment.id).await.expect("works").is_none());
    assert!(store.list_environments(other, EnvironmentQuery::default()).await.expect("works").is_empty());
    let changed = store.change_environment(other, &environment.id, Box::new(|_| Ok(None))).await;
    assert!(matches!(changed, Err(ChangeError::NotFound)));
    assert!(matches!(store.delete_environment(other, &environment.id).await, Err(ChangeError::NotFound)));
}

pub(crate) async fn keys_are_found_by_their_hash_until_revoked(world: &World) {
    let (store, workspace) = (&world.store, &world.workspace);
    let hash = hash_key("ph-secret");
    let key = store.create_key(workspace, "laptop", hash).await.expect("kept");
    assert!(matches!(store.create_key(workspace, "again", hash).await, Err(ChangeError::Exists)));
    let other = store.create_key(workspace, "server", hash_key("ph-other")).await.expect("kept");
    assert_eq!(store.find_key(hash).await.expect("works"), Some(key.clone()));
    assert_eq!(store.find_key(hash_key("ph-wrong")).await.expect("works"), None);
    assert_eq!(store.list_keys(workspace).await.expect("works"), [key.clone(), other]);
    assert!(matches!(store.revoke_key(&world.id(), &key.id).await, Err(ChangeError::NotFound)));
    let revoked = store.revoke_key(workspace, &key.id).await.expect("revoked");
    assert_eq!(revoked.revoked_at, Some(store.now()));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(store.revoke_key(workspace, &key.id).await.expect("again"), revoked);
    assert_eq!(store.find_key(hash).await.expect("works"), None);
    assert_eq!(store.list_keys(workspace).await.expect("works").len(), 2);
}

pub(crate) async fn there_is_one_first_workspace(world: &World) {
    let (first, again) = tokio::join!(world.store.ensure_workspace(), world.store.ensure_workspace());
    assert_eq!(first.expect("works"), again.expect("works"));
}
