//! Sandboxes as containers of a real engine: the contract, the attacks, and the deaths of everybody who has a part in it.
//!
//! Each test says plainly if it was left out, past the test harness's capture, with the reason and what to do about it.

pub(crate) mod engine;

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use sandbox::{Error, Limits, Network, Provider, Resources, conformance};
use serde_json::json;

use self::engine::{Engine, IMAGE, RUNTIME, SMALL_IMAGE};
use crate::host::{CONTAINERS, Host, call, eventually, fresh_id, text};

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
fn is_walled_in() -> bool {
    std::env::var(RUNTIME).is_ok_and(|runtime| runtime.contains("runsc"))
}

#[tokio::test]
async fn containers_keep_the_contract() {
    let Some(engine) = engine("containers_keep_the_contract") else { return };
    let host = host(engine);
    conformance::suite(&*host.provider, "suite").await;
    if !is_walled_in() {
        conformance::exits_suite(&*host.provider, "suite").await;
    }
    assert_eq!(host.containers(), [""; 0]);
    host.end().await;
}

/// Every attack on a sandbox of namespaces, made on containers, and what the provider's own tests ask for.
#[test]
fn containers_withstand_the_attacks_too() {
    let Some(engine) = engine("containers_withstand_the_attacks_too") else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["attacks::", "provider::"])
        // They wait for the engine more than they compute.
        .arg("--test-threads=6")
        .env(CONTAINERS, engine.socket())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
}
