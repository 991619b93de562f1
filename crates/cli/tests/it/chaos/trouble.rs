//! What happens to the fleet and its database, one thing after another.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use testkit::postgres::{Cluster, Stop};
use tokio::time::{Instant, sleep, sleep_until};

use crate::chaos::fleet::{Fleet, Kind};

/// Longer than a lease, so that what was away comes back to a session that somebody else drives.
const BEYOND_A_LEASE: Duration = Duration::from_secs(12);

/// One trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// SIGKILL of a brain.
    KillBrain,
    /// SIGKILL of a door.
    KillDoor,
    /// SIGSTOP of a brain beyond its lease, while other things happen.
    FreezeBrain,
    /// SIGSTOP of a brain for less than a lease.
    PauseBrain,
    /// Every connection to the database is reset once.
    DropConnections,
    /// Nobody reaches the database for some seconds.
    CutAll,
    /// One process does not reach it for longer than a lease, while other things happen.
    CutOne,
    /// No byte passes to or from the database for some seconds.
    StallAll,
    /// No byte passes for one process for longer than a lease, while other things happen.
    StallOne,
    /// The database is stopped in order and started again.
    RestartFast,
    /// The database crashes and recovers.
    RestartImmediate,
    /// SIGKILL of a sandbox.
    KillSandbox,
    /// SIGKILL of the supervisor, and with it of every sandbox.
    KillSupervisor,
    /// Every process is told to stop, and started again, one after another.
    RollingRestart,
}

/// How often the supervisor dies, in cycles. What happened in a workspace shows only as long as there is one.
const SUPERVISOR_CYCLES: u32 = 5;

/// Each as often as it happens in a cycle.
const CYCLE: [Trouble; 17] = [
    Trouble::KillBrain,
    Trouble::KillBrain,
    Trouble::KillBrain,
    Trouble::KillDoor,
    Trouble::KillDoor,
    Trouble::FreezeBrain,
    Trouble::PauseBrain,
    Trouble::DropConnections,
    Trouble::CutAll,
    Trouble::CutOne,
    Trouble::StallAll,
    Trouble::StallOne,
    Trouble::RestartFast,
    Trouble::RestartImmediate,
    Trouble::KillSandbox,
    Trouble::KillSandbox,
    Trouble::RollingRestart,
];

/// A trouble that goes on while others come, of one process, until some time.
struct Lasting {
    process: usize,
    until: Instant,
}

/// Makes all troubles of that many cycles and puts everything right again; gives how often each happened.
pub(super) async fn make(
    fleet: &mut Fleet,
    cluster: &Cluster,
    cycles: u32,
    mut random: SmallRng,
) -> BTreeMap<Trouble, u32> {
    let mut counts = BTreeMap::new();
    let mut lasting = Vec::new();
    for cycle in 1..=cycles {
        let mut order = CYCLE.to_vec();
        if cycle % SUPERVISOR_CYCLES == 0 {
            order.push(Trouble::KillSupervisor);
        }
        order.shuffle(&mut random);
        for trouble in order {
            pass(fleet, &mut lasting, Duration::from_millis(random.random_range(200..1500))).await;
            let is_made = make_one(fleet, cluster, trouble, &mut lasting, &mut random).await;
            *counts.entry(trouble).or_insert(0) += u32::from(is_made);
        }
    }
    while let Some(last) = lasting.iter().map(|one: &Lasting| one.until).max() {
        pass(fleet, &mut lasting, last.saturating_duration_since(Instant::now())).await;
    }
    fleet.put_right().await;
    counts
}

/// Gives whether there was somebody to meet it: all brains may be in trouble already.
async fn make_one(
    fleet: &mut Fleet,
    cluster: &Cluster,
    trouble: Trouble,
    lasting: &mut Vec<Lasting>,
    random: &mut SmallRng,
) -> bool {
    let spared = |index: &usize| lasting.iter().all(|one| one.process != *index);
    let any = |kind: Kind, random: &mut SmallRng| {
        let running: Vec<usize> = fleet.running(kind).into_iter().filter(spared).collect();
        running.choose(random).copied()
    };
    let seconds = |random: &mut SmallRng, least: f64, most: f64| {
        Duration::from_secs_f64(random.random_range(least..most))
    };
    match trouble {
        Trouble::KillBrain | Trouble::KillDoor => {
            let kind = if trouble == Trouble::KillBrain { Kind::Brain } else { Kind::Door };
            let Some(index) = any(kind, random) else { return false };
            fleet.kill(index).await;
            sleep(seconds(random, 0.0, 1.0)).await;
            fleet.start_one(index).await;
        }
        Trouble::FreezeBrain => {
            let Some(process) = any(Kind::Brain, random) else { return false };
            fleet.freeze(process);
            lasting.push(Lasting { process, until: Instant::now() + BEYOND_A_LEASE });
        }
        Trouble::PauseBrain => {
            let Some(index) = any(Kind::Brain, random) else { return false };
            fleet.freeze(index);
            sleep(seconds(random, 1.0, 4.0)).await;
            fleet.thaw(index);
        }
        Trouble::DropConnections => {
            for index in 0..fleet.len() {
                fleet.proxy(index).drop_all().await;
            }
        }
        Trouble::CutAll | Trouble::StallAll => {
            let spared: Vec<usize> = (0..fleet.len()).filter(spared).collect();
            for index in &spared {
                match trouble {
                    Trouble::CutAll => fleet.proxy(*index).cut().await,
                    _ => fleet.proxy(*index).stall().await,
                }
            }
            sleep(seconds(random, 1.0, 5.0)).await;
            for index in &spared {
                fleet.proxy(*index).heal().await;
            }
        }
        Trouble::CutOne | Trouble::StallOne => {
            let Some(process) = any(Kind::Brain, random) else { return false };
            match trouble {
                Trouble::CutOne => fleet.proxy(process).cut().await,
                _ => fleet.proxy(process).stall().await,
            }
            lasting.push(Lasting { process, until: Instant::now() + BEYOND_A_LEASE });
        }
        Trouble::RestartFast | Trouble::RestartImmediate => {
            let how = if trouble == Trouble::RestartFast { Stop::Fast } else { Stop::Immediate };
            tokio::task::block_in_place(|| cluster.stop(how)).expect("it stops");
            sleep(seconds(random, 0.0, 2.0)).await;
            tokio::task::block_in_place(|| cluster.start()).expect("it starts");
        }
        Trouble::KillSandbox => fleet.kill_sandbox(random),
        Trouble::KillSupervisor => fleet.kill_supervisor(),
        Trouble::RollingRestart => {
            for index in (0..fleet.len()).filter(spared).collect::<Vec<_>>() {
                fleet.terminate(index).await;
                fleet.start_one(index).await;
            }
        }
    }
    true
}

/// Lets time pass; ends what has lasted long enough.
async fn pass(fleet: &mut Fleet, lasting: &mut Vec<Lasting>, time: Duration) {
    let until = Instant::now() + time;
    while let Some(index) = (0..lasting.len())
        .filter(|index| lasting[*index].until <= until)
        .min_by_key(|index| lasting[*index].until)
    {
        let Lasting { process, until } = lasting.remove(index);
        sleep_until(until).await;
        fleet.proxy(process).heal().await;
        fleet.thaw(process);
    }
    sleep_until(until).await;
    fleet.look().await;
}
