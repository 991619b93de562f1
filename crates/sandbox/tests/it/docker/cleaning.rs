//! Nothing survives its sandbox: containers, layers, networks, doors, control groups, processes and descriptors are counted
//! before and after two dozen containers whose servers and supervisors are killed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Signal, kill_process};
use sandbox::{Error, Resources, SandboxId};

use super::{call_of, engine, host};
use crate::host::{Host, eventually, fresh_id};
use testkit::engine::{ids_of, networks_of};

const ROUNDS: usize = 4;
/// At once.
const CONTAINERS: usize = 6;

/// What a data directory's containers take of a machine.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    containers: usize,
    layers: usize,
    networks: usize,
    processes: usize,
    /// Doors with their sockets among them.
    files: usize,
    descriptors: usize,
}

impl Taken {
    fn count(host: &Host) -> Self {
        let supervisor = host.supervisor().as_raw_nonzero();
        Self {
            containers: host.containers().len(),
            layers: host.layers().len(),
            networks: networks_of(host.engine_socket()),
            processes: host.family().len(),
            files: entries(&host.data().join("supervisor")),
            descriptors: fs::read_dir(format!("/proc/{supervisor}/fd")).map_or(0, Iterator::count),
        }
    }
}

fn entries(folder: &Path) -> usize {
    let Ok(here) = fs::read_dir(folder) else { return 0 };
    here.flatten().map(|entry| 1 + entries(&entry.path())).sum()
}

/// Whether a control group of a container is left, in any hierarchy.
fn has_group(folder: &Path, container: &str, depth: usize) -> bool {
    let Ok(here) = fs::read_dir(folder) else { return false };
    here.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).any(|entry| {
        entry.file_name().to_string_lossy().contains(container)
            || (depth > 0 && has_group(&entry.path(), container, depth - 1))
    })
}

async fn busy(host: &Host) -> SandboxId {
    let id = fresh_id();
    host.provider.provision(&id, 1, &Resources::default()).await.unwrap();
    let work = "mkdir -p a/b; head -c 100000 /dev/zero > a/b/c; sleep 1000 > /dev/null 2>&1 &";
    host.provider.execute(call_of(&id, 1, work)).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_containers_whose_servers_and_supervisors_were_killed() {
    let Some(engine) = engine("nothing_is_left_of_containers_whose_servers_and_supervisors_were_killed")
    else {
        return;
    };
    let mut host = host(engine);
    let first = busy(&host).await;
    host.provider.destroy(&first).await.unwrap();
    eventually("the first is gone", || host.family().is_empty()).await;
    let before = Taken::count(&host);
    let mut seen = Vec::new();
    for round in 0..ROUNDS {
        let ids = join_all((0..CONTAINERS).map(|_| busy(&host))).await;
        seen.extend(ids_of(host.engine_socket(), &host.containers()));
        match round % 3 {
            // A server dies while it makes more.
            0 => {
                let more = [fresh_id(), fresh_id()];
                let resources = Resources::default();
                let making = join_all(more.iter().map(|id| host.provider.provision(id, 1, &resources)));
                let _ = tokio::time::timeout(Duration::from_millis(100), making).await;
                host.reconnect();
            }
            // Its supervisor dies, and with it all that it keeps.
            1 => {
                kill_process(host.supervisor(), Signal::KILL).unwrap();
                let lost = host.provider.execute(call_of(&ids[0], 1, "true")).await;
                assert!(matches!(lost, Err(Error::Gone { .. })), "{lost:?}");
            }
            _ => {}
        }
        // As the reaper does.
        for info in host.provider.list().await.unwrap() {
            host.provider.destroy(&info.id).await.unwrap();
        }
    }
    // A last one, so that there is a supervisor to be looked at.
    let last = busy(&host).await;
    host.provider.destroy(&last).await.unwrap();
    host.provider.list().await.unwrap();
    let is_clean = || {
        let after = Taken::count(&host);
        let is_within = after.descriptors <= before.descriptors + 2
            && Taken { descriptors: before.descriptors, ..after } == before;
        is_within && !seen.iter().any(|id| has_group(Path::new("/sys/fs/cgroup"), id, 2))
    };
    assert!(seen.len() >= ROUNDS * CONTAINERS, "{}", seen.len());
    eventually(&format!("as before, {before:?}"), is_clean).await;
    host.end().await;
}
