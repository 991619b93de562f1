//! Sandboxes as containers of a real engine: the contract, the attacks, and the deaths of everybody who has a part in it.
//!
//! Each test says plainly if it was left out, past the test harness's capture, with the reason and what to do about it.

mod cleaning;
mod packages;
mod snapshots;

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use sandbox::{Base, Capacity, Error, Limits, Network, Resources, Restore, conformance};
use serde_json::json;
use testkit::engine::{self, Engine, IMAGE, RUNTIME, SMALL_IMAGE};

use crate::host::{CONTAINERS, EXITS, Host, call, eventually, fresh_id, text};

/// The shared engine; `None`, and told, where there is none.
fn engine(test: &str) -> Option<&'static Engine> {
    match Engine::shared() {
        Ok(engine) => Some(engine),
        Err(reason) => {
            left_out(test, reason);
            None
        }
    }
}

fn left_out(test: &str, reason: &str) {
    // Not by a macro, whose words nobody would see as long as the test passes.
    let _ = writeln!(std::io::stderr(), "LEFT OUT: docker::{test}: {reason}");
}

/// A server whose sandboxes are containers of this engine.
fn host(engine: &Engine) -> Host {
    Host::of_containers(engine.socket().to_str().unwrap())
}

/// Whether the containers' kernel is one of their own: it does not give its sockets away, so there is no exit.
pub(crate) fn is_walled_in() -> bool {
    std::env::var(RUNTIME).is_ok_and(|runtime| runtime.contains("runsc"))
}

fn image(name: &str) -> Base {
    Base { image: Some(name.to_owned()), ..Base::default() }
}

#[tokio::test]
async fn containers_keep_the_contract() {
    let Some(engine) = engine("containers_keep_the_contract") else { return };
    let host = host(engine);
    conformance::suite(&*host.provider, "containers").await;
    if !is_walled_in() {
        conformance::exits_suite(&*host.provider, "containers").await;
        let authority = egress::Authority::from_seed("suite", &[1; 32]).unwrap();
        conformance::equipment_suite(&*host.provider, "containers", authority.certificate()).await;
        let tree = crate::host::tree();
        conformance::trees_suite(&*host.provider, "containers", &tree.path().join("archive")).await;
    }
    assert_eq!(host.containers(), [""; 0]);
    host.end().await;
}

/// Every attack on a sandbox of namespaces, made on containers, and what the provider's own tests ask for.
#[test]
fn containers_withstand_the_attacks_too() {
    let Some(engine) = engine("containers_withstand_the_attacks_too") else { return };
    // What the supervisor does alike for every sandbox, and the contract, which has a test of its own.
    let skipped = ["--skip", "collect", "--skip", "copied_again", "--skip", "of_namespaces"];
    repeat(engine, &[&["attacks::", "provider::"], &skipped[..]].concat(), &[]);
}

#[test]
fn containers_with_an_exit_withstand_the_attacks_too() {
    let Some(engine) = engine("containers_with_an_exit_withstand_the_attacks_too") else { return };
    if is_walled_in() {
        let reason = "this runtime gives no sockets away";
        return left_out("containers_with_an_exit_withstand_the_attacks_too", reason);
    }
    repeat(engine, &["attacks::", "--skip", "attacks::resources", "--skip", "attacks::exit"], &[EXITS]);
}

/// What is promised about snapshots is the same for both.
#[test]
fn containers_are_saved_and_restored_too() {
    let Some(engine) = engine("containers_are_saved_and_restored_too") else { return };
    let skipped = ["--skip", "outside_of_the_workspace", "--skip", "of_namespaces"];
    repeat(engine, &[&["snapshots::"], &skipped[..]].concat(), &[]);
}

/// Runs tests of this program a second time, with containers as sandboxes.
fn repeat(engine: &Engine, arguments: &[&str], variables: &[&str]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        // They wait for the engine more than they compute.
        .arg("--test-threads=6")
        .env(CONTAINERS, engine.socket())
        .envs(variables.iter().map(|name| (name, "1")))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
}

#[tokio::test]
async fn a_container_and_its_call_outlive_the_server() {
    let Some(engine) = engine("a_container_and_its_call_outlive_the_server") else { return };
    let mut host = host(engine);
    let id = fresh_id();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    let asked = call(&id, "bash", json!({"command": "echo ran >> runs; sleep 1; cat runs"}));
    let soon = Duration::from_millis(300);
    assert!(tokio::time::timeout(soon, host.provider.execute(asked.clone())).await.is_err(), "it runs");
    host.reconnect();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    assert_eq!(text(&host.provider.execute(asked).await.unwrap()), "ran");
    assert_eq!(host.containers().len(), 1);
    host.end().await;
}

#[tokio::test]
async fn a_server_that_dies_while_a_container_is_made_leaves_one_or_none() {
    let Some(engine) = engine("a_server_that_dies_while_a_container_is_made_leaves_one_or_none") else {
        return;
    };
    let mut host = host(engine);
    let resources = Resources::default();
    for milliseconds in [1, 20, 60, 120, 250] {
        let id = fresh_id();
        let first = host.provider.provision(&id, 1, &resources);
        let _ = tokio::time::timeout(Duration::from_millis(milliseconds), first).await;
        host.reconnect();
        // The next server asks for the same sandbox and gets it, whatever it finds.
        host.provider.provision(&id, 2, &resources).await.unwrap();
        let said = host.provider.execute(call_of(&id, 2, "echo hi")).await.unwrap();
        assert_eq!(text(&said), "hi");
        assert_eq!(host.containers().len(), 1);
        host.provider.destroy(&id).await.unwrap();
        assert_eq!(host.containers(), [""; 0]);
    }
    // Or nobody asks for it again: then it is listed, until it is destroyed.
    let id = fresh_id();
    let first = host.provider.provision(&id, 1, &resources);
    let _ = tokio::time::timeout(Duration::from_millis(60), first).await;
    host.reconnect();
    for info in host.provider.list().await.unwrap() {
        host.provider.destroy(&info.id).await.unwrap();
    }
    host.provider.list().await.unwrap();
    eventually("no container is left", || host.containers().is_empty()).await;
    host.end().await;
}

#[tokio::test]
async fn a_container_dies_with_its_supervisor_and_the_call_says_so() {
    let Some(engine) = engine("a_container_dies_with_its_supervisor_and_the_call_says_so") else { return };
    let host = host(engine);
    let sandbox = host.sandbox(Resources::default()).await;
    let kill = async {
        eventually("the call runs", || host.family().len() >= 3).await;
        kill_process(host.supervisor(), Signal::KILL).unwrap();
    };
    let (called, ()) = tokio::join!(sandbox.try_bash("sleep 600"), kill);
    assert!(matches!(called, Err(Error::Gone { .. })), "{called:?}");
    eventually("no container is left", || host.containers().is_empty()).await;
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_without_the_engine_and_end_when_it_comes_back() {
    if engine::is_podman() {
        return left_out(
            "calls_go_on_without_the_engine_and_end_when_it_comes_back",
            "Podman's containers need no service, and its return ends none",
        );
    }
    let mut engine = match Engine::start() {
        Ok(engine) => engine,
        Err(reason) => return left_out("calls_go_on_without_the_engine_and_end_when_it_comes_back", &reason),
    };
    let host = host(&engine);
    let sandbox = host.sandbox(Resources::default()).await;
    let other = host.sandbox(Resources::default()).await;
    let running = sandbox.bash("sleep 1; echo survived");
    let kill = async { tokio::task::block_in_place(|| engine.kill()) };
    let (said, ()) = tokio::join!(running, kill);
    assert_eq!(said, "survived");
    let refused = host.provider.provision(&fresh_id(), 1, &Resources::default()).await;
    assert!(
        matches!(&refused, Err(Error::Unavailable { reason }) if reason.contains("cannot be reached")),
        "{refused:?}"
    );
    assert_eq!(host.provider.list().await.unwrap().len(), 2, "what lives is known without it");
    // Destroyed is what ran in it; that it is gone can only be said with the engine.
    let half = host.provider.destroy(&other.id).await;
    assert!(matches!(half, Err(Error::Unavailable { .. })), "{half:?}");
    assert!(matches!(other.try_bash("echo hi").await, Err(Error::Gone { .. })));

    // An engine that comes back ends the containers of its former life, unless it was told to let them live.
    tokio::task::block_in_place(|| engine.start_again()).unwrap();
    host.provider.destroy(&other.id).await.unwrap();
    let gone = async {
        while !matches!(sandbox.try_bash("echo hi").await, Err(Error::Gone { .. })) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
    host.provider.list().await.unwrap();
    assert_eq!(host.containers(), [""; 0]);
    host.sandbox(Resources::default()).await;
    host.end().await;
}

#[tokio::test]
async fn what_nobody_knows_is_swept_away_and_what_others_have_is_not() {
    let Some(engine) = engine("what_nobody_knows_is_swept_away_and_what_others_have_is_not") else { return };
    let (one, other) = (host(engine), host(engine));
    one.provider.list().await.unwrap();
    let foreign = other.sandbox(Resources::default()).await;
    // As a server leaves it that died between two calls of the engine, long ago.
    let labels = [("posthouse.instance", one.instance()), ("posthouse.sandbox", "lost".to_owned())];
    let body = bollard::models::ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        ..Default::default()
    };
    let name = format!("posthouse-{}-lost", one.instance());
    let options = bollard::query_parameters::CreateContainerOptionsBuilder::default().name(&name).build();
    engine.client().create_container(Some(options), body).await.unwrap();
    assert_eq!(one.containers(), [name]);
    assert_eq!(one.provider.list().await.unwrap(), []);
    assert_eq!(one.containers(), [""; 0]);
    assert_eq!(foreign.bash("echo unharmed").await, "unharmed");
    one.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_busybox_is_image_enough_and_what_it_wants_of_the_hosts_disk_it_gets_in_memory() {
    let Some(engine) = engine("a_busybox_is_image_enough") else { return };
    let host = host(engine).with_engine(|settings| settings.images = vec![SMALL_IMAGE.to_owned()]);
    let limits = Limits { disk_bytes: 64 << 20, ..Limits::default() };
    let resources = Resources { base: image(SMALL_IMAGE), limits, ..Resources::default() };
    let sandbox = host.sandbox(resources).await;
    let said = sandbox.bash("A=1; ls /; echo $A; cat /proc/self/mounts").await;
    assert!(said.contains("\n1\n") && said.contains("tmpfs /data "), "{said}");
    // Its share: two of 64 parts.
    let full = sandbox.bash("head -c 5000000 /dev/zero > /data/x; cat /data/x | wc -c").await;
    let written: u64 = full.lines().last().unwrap().trim().parse().unwrap();
    assert_eq!(written, 2 << 20, "{full}");
    assert_eq!(sandbox.bash("echo $A").await, "1", "it is one shell still");
    host.end().await;
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_leaves_nothing() {
    let Some(engine) = engine("what_cannot_be_made_is_said_and_leaves_nothing") else { return };
    let refusal = async |host: &Host, resources: Resources| {
        let refused = host.provider.provision(&fresh_id(), 1, &resources).await.unwrap_err();
        assert_eq!(host.provider.list().await.unwrap(), []);
        assert_eq!(host.containers(), [""; 0]);
        refused.to_string()
    };
    let missing = host(engine).with_engine(|settings| settings.image = "nowhere/nothing:1".to_owned());
    let said = refusal(&missing, Resources::default()).await;
    assert!(said.contains("`docker pull nowhere/nothing:1`"), "{said}");
    missing.end().await;
    let unknown = host(engine).with_engine(|settings| settings.runtime = Some("no-such".to_owned()));
    let said = refusal(&unknown, Resources::default()).await;
    let by = if engine::is_podman() { "Podman runs containers with" } else { "the engine says: " };
    assert!(said.contains(by) && said.contains("no-such"), "{said}");
    unknown.end().await;
    let host = host(engine);
    let asked = Resources { base: image(SMALL_IMAGE), ..Resources::default() };
    let said = refusal(&host, asked).await;
    assert!(said.contains("[sandbox.docker] images"), "{said}");
    let limits = Limits { processes: 1, ..Limits::default() };
    let said = refusal(&host, Resources { limits, ..Resources::default() }).await;
    assert!(said.contains("process limit"), "{said}");
    let nowhere = Restore { file: "/nowhere".into(), base: "host".to_owned() };
    let restored = Resources { restore: Some(nowhere), ..Resources::default() };
    let said = refusal(&host, restored).await;
    assert!(said.contains("it was saved on host"), "{said}");
    host.end().await;
    let nobody = Host::of_containers("/nowhere/docker.sock");
    let refused = nobody.provider.provision(&fresh_id(), 1, &Resources::default()).await;
    assert!(
        matches!(&refused, Err(Error::Unavailable { reason }) if reason.contains("/nowhere/docker.sock")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_container_for_which_there_is_no_room_waits_in_line() {
    let Some(engine) = engine("a_container_for_which_there_is_no_room_waits_in_line") else { return };
    let capacity = Capacity { sandboxes_max: 1, waiting_max: 1, ..Capacity::default() };
    let host = host(engine).with_capacity(capacity);
    let first = host.sandbox(Resources::default()).await;
    let (waiting, unlucky) = (fresh_id(), fresh_id());
    let resources = Resources::default();
    let waits = host.provider.provision(&waiting, 1, &resources);
    let others = async {
        let there = async {
            while host.provider.occupancy().await.unwrap().waiting != 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), there).await.expect("it waits");
        let refused = host.provider.provision(&unlucky, 1, &resources).await;
        assert!(
            matches!(&refused, Err(Error::Busy { reason }) if reason.contains("1 live, limit 1, 1 wait")),
            "{refused:?}"
        );
        assert_eq!(host.containers().len(), 1, "the engine is asked when there is room");
        host.provider.destroy(&first.id).await.unwrap();
    };
    let (provisioned, ()) = tokio::join!(waits, others);
    provisioned.unwrap();
    assert_eq!(text(&host.provider.execute(call_of(&waiting, 1, "echo in")).await.unwrap()), "in");
    host.end().await;
}

#[tokio::test]
async fn the_report_says_what_the_engine_gives() {
    let Some(engine) = engine("the_report_says_what_the_engine_gives") else { return };
    let host = host(engine);
    let report = host.provider.docker().report().await.unwrap();
    assert_eq!(report.refusal(), None, "{report}");
    let text = report.to_string();
    let name = if engine::is_podman() { "Podman " } else { "Docker " };
    for expected in ["container engine", name, &format!("{IMAGE} is here"), "system call filter"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let host = host.with_engine(|settings| settings.image = "nowhere/nothing:1".to_owned());
    let refusal = host.provider.docker().report().await.unwrap().refusal().unwrap();
    assert!(refusal.contains("docker pull nowhere/nothing:1"), "{refusal}");
    let host = Host::of_containers("/nowhere/docker.sock");
    let refusal = host.provider.docker().report().await.unwrap().refusal().unwrap();
    assert!(refusal.contains("/nowhere/docker.sock"), "{refusal}");
}

#[tokio::test]
async fn the_exit_is_the_only_way_out_of_a_container_too() {
    let Some(engine) = engine("the_exit_is_the_only_way_out_of_a_container_too") else { return };
    if is_walled_in() {
        return left_out(
            "the_exit_is_the_only_way_out_of_a_container_too",
            "this runtime gives no sockets away",
        );
    }
    let host = host(engine);
    let network = Some(Network("anything".to_owned()));
    let sandbox = host.sandbox(Resources { network, ..Resources::default() }).await;
    let told = sandbox.bash("echo $http_proxy; ls /sys /proc/sys/net/ipv4/conf").await;
    assert_eq!(told.lines().next(), Some("http://127.0.0.1:3128"));
    let interfaces = sandbox.python("print([n for _, n in socket.if_nameindex()])").await;
    assert_eq!(interfaces, "['lo']");
    host.end().await;
}

fn call_of(id: &sandbox::SandboxId, fence: u64, command: &str) -> sandbox::Call {
    sandbox::Call { fence, ..call(id, "bash", json!({"command": command})) }
}
