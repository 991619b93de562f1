//! What is installed before anybody asks.

use std::collections::BTreeMap;
use std::time::Duration;

use background::Installer;
use protocol::environment::{
    Environment, EnvironmentConfig, EnvironmentTag, Networking, Packages, PackagesTag,
};
use sandbox::Base;
use store::Store;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::reaper::World;

const PATIENCE: Duration = Duration::from_secs(60);

/// A world without sessions, whose time goes by itself.
async fn world() -> World {
    World::with(|_| Store::in_memory(store::Options::default())).await
}

fn work(world: &World) -> (CancellationToken, JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let installer = Installer::new(world.store.clone(), world.hands.clone(), None);
    (shutdown.clone(), tokio::spawn(installer.run(shutdown)))
}

/// What sandboxes start from where an environment lists this package.
fn base(package: &str) -> Base {
    let packages = sandbox::Packages { pip: vec![package.to_owned()], ..sandbox::Packages::default() };
    Base { image: None, packages }
}

async fn create_environment(world: &World, package: &str) {
    let packages = Packages {
        tag: PackagesTag::Packages,
        apt: Vec::new(),
        cargo: Vec::new(),
        gem: Vec::new(),
        go: Vec::new(),
        npm: Vec::new(),
        pip: vec![package.to_owned()],
    };
    let now = world.store.now();
    let environment = Environment {
        tag: EnvironmentTag::Environment,
        id: world.store.ids().make(),
        name: format!("with {package}"),
        description: None,
        config: EnvironmentConfig::Cloud { networking: Networking::Unrestricted {}, packages },
        metadata: BTreeMap::new(),
        scope: None,
        created_at: now,
        updated_at: now,
        archived_at: None,
    };
    world.store.create_environment(&world.workspace, environment).await.expect("created");
}

#[tokio::test(start_paused = true)]
async fn packages_are_installed_without_a_session_and_once() {
    let world = world().await;
    let (shutdown, working) = work(&world);
    sleep(PATIENCE).await;
    create_environment(&world, "six").await;
    timeout(PATIENCE, world.hands.until_prepared(1)).await.expect("soon");
    create_environment(&world, "attrs").await;
    timeout(PATIENCE, world.hands.until_prepared(2)).await.expect("soon");
    sleep(20 * PATIENCE).await;
    assert_eq!(world.hands.prepared(), [base("six"), base("attrs")]);
    shutdown.cancel();
    working.await.expect("it ends in peace");
}

#[tokio::test(start_paused = true)]
async fn an_install_that_takes_long_does_not_hold_up_the_others() {
    let world = world().await;
    world.hands.hang_preparing(&base("slow"));
    create_environment(&world, "slow").await;
    let (shutdown, working) = work(&world);
    timeout(PATIENCE, world.hands.until_prepared(1)).await.expect("soon");
    for package in ["one", "two", "three"] {
        create_environment(&world, package).await;
    }
    timeout(PATIENCE, world.hands.until_prepared(4)).await.expect("soon");
    // But two at most go on at once.
    world.hands.hang_preparing(&base("slow, too"));
    create_environment(&world, "slow, too").await;
    timeout(PATIENCE, world.hands.until_prepared(5)).await.expect("soon");
    create_environment(&world, "four").await;
    sleep(PATIENCE).await;
    assert_eq!(world.hands.prepared().len(), 5);
    shutdown.cancel();
    timeout(PATIENCE, working).await.expect("it waits for nobody").expect("it ends in peace");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_installed_is_left_alone_for_ten_minutes() {
    let world = world().await;
    world.hands.fail_preparing(&base("bad"));
    create_environment(&world, "bad").await;
    let (shutdown, working) = work(&world);
    sleep(Duration::from_secs(599)).await;
    assert_eq!(world.hands.prepared().len(), 1);
    timeout(PATIENCE, world.hands.until_prepared(2)).await.expect("then it is tried again");
    shutdown.cancel();
    working.await.expect("it ends in peace");
}
