//! The brain, the log and the reader in a world of chance that can be lived again: virtual time, one thread, and every
//! misfortune drawn from a seed.
//!
//! Several brains over one store in memory. Their calls to it are slow, lost on the way there or on the way back, or
//! decided twice ([`weather`]); hands lose replies and sandboxes ([`hands`]); models are slow and fail. Brains die and
//! freeze between any two steps, or are told to stop ([`process`]). Clients send, interrupt, confirm and answer; readers
//! follow, are cut off and resume ([`clients`]). Then the misfortunes end, the sessions come to rest, and everything is
//! compared with everything ([`checks`]).
//!
//! `POSTHOUSE_SIMULATED_SEEDS` says how many seeds are tried; `POSTHOUSE_SIMULATE_SEED` lives one of them again and
//! prints its logs.

mod checks;
mod clients;
mod dice;
mod hands;
mod process;
mod weather;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::ModelLimits;
use harness::model::{Providers, Script};
use protocol::agent::PermissionPolicy;
use protocol::id::{SessionId, WorkspaceId};
use serde_json::{Value, json};
use store::{Ids, Limits, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::checks::Told;
use self::clients::Client;
use self::dice::{Climate, Dice, Misfortunes, VirtualClock};
use self::hands::Hands;
use self::weather::StoreWeather;

/// How many seeds the test command tries.
const SEEDS: u64 = 200;
/// How many kinds of misfortune there are.
const MISFORTUNES: usize = 11;
/// Every so many seeds are lived twice, to compare.
const TWICE_EVERY: u64 = 4;
/// How long the sessions may take to come to rest once the misfortunes have ended. A frozen brain's lease has to lapse,
/// and a model may fail a few times in a row.
const REST_TIME_MAX: Duration = Duration::from_secs(3_600);

/// What everybody in a simulation shares.
struct World {
    seed: u64,
    climate: Climate,
    store: Store,
    models: Arc<Providers>,
    model_limits: ModelLimits,
    hands: Arc<Hands>,
    misfortunes: Arc<Misfortunes>,
    /// Everything has come to rest: readers stop when they have seen all.
    over: CancellationToken,
    sessions: Mutex<Vec<(WorkspaceId, SessionId)>>,
}

impl World {
    fn dice(&self, name: &str) -> Dice {
        Dice::new(self.seed, name)
    }
}

/// Lives one seed through; gives what was told in the end, all of it checked.
fn live(seed: u64) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(story(seed))
}

async fn story(seed: u64) -> Told {
    let dice = Dice::new(seed, "world");
    let climate = Climate::draw(&dice);
    let misfortunes = Arc::new(Misfortunes::default());
    let options = store::Options {
        clock: Arc::new(VirtualClock::new(Dice::new(seed, "clock"), climate, misfortunes.clone())),
        ids: Ids::seeded(seed),
        limits: limits(&dice),
        ..store::Options::default()
    };
    let weather = StoreWeather::new(Dice::new(seed, "weather"), climate, misfortunes.clone());
    let world = Arc::new(World {
        seed,
        climate,
        store: Store::in_weather(options, Arc::new(weather)),
        models: models(seed, &dice),
        model_limits: model_limits(&dice),
        hands: Arc::new(Hands::new(Dice::new(seed, "hands"), climate, misfortunes.clone())),
        misfortunes,
        over: CancellationToken::new(),
        sessions: Mutex::default(),
    });
    let mut processes = JoinSet::new();
    for number in 0..dice.between(1, 3) {
        processes.spawn(process::live_again_and_again(world.clone(), number));
    }
    let workspaces: Vec<WorkspaceId> = (0..dice.between(1, 2)).map(|_| world.store.ids().make()).collect();
    let mut clients = JoinSet::new();
    let mut readers = JoinSet::new();
    for number in 0..dice.between(1, 4) {
        let policy = match dice.one_in(3) {
            true => PermissionPolicy::AlwaysAsk {},
            false => PermissionPolicy::AlwaysAllow {},
        };
        let workspace = dice.pick(&workspaces).clone();
        let record = crate::world::record(&world.store, policy, &model_name(number % MODELS));
        world.sessions.lock().expect("not poisoned").push((workspace.clone(), record.id.clone()));
        for reader in 0..dice.between(1, 2) {
            let name = format!("reader {number} {reader}");
            readers.spawn(clients::read(world.clone(), record.id.clone(), name));
        }
        let client = Client::new(world.clone(), workspace, record.id.clone(), number);
        clients.spawn(client.work(record));
    }
    // Each gives up its client when it has sent all that it wants to.
    let mut resting = JoinSet::new();
    while let Some(client) = clients.join_next().await {
        resting.spawn(client.expect("no client panics").come_to_rest());
        if clients.is_empty() {
            world.misfortunes.end();
        }
    }
    let mut acknowledged = Vec::new();
    let rested = tokio::time::timeout(REST_TIME_MAX, async {
        while let Some(client) = resting.join_next().await {
            acknowledged.push(client.expect("no client panics"));
        }
    });
    if rested.await.is_err() {
        let told = checks::told(&world).await;
        panic!("not all sessions come to rest:\n{told}");
    }
    world.over.cancel();
    let mut read = Vec::new();
    let all_read = tokio::time::timeout(REST_TIME_MAX, async {
        while let Some(reader) = readers.join_next().await {
            read.push(reader.expect("no reader panics"));
        }
    });
    assert!(all_read.await.is_ok(), "a reader never sees the end");
    processes.shutdown().await;
    checks::check(&world, acknowledged, read).await
}

fn limits(dice: &Dice) -> Limits {
    let some = |max| dice.one_in(2).then(|| u32::try_from(dice.between(1, max)).expect("small"));
    Limits {
        running_max: some(3),
        running_per_workspace_max: some(2),
        // Clients wait and try again.
        waiting_per_workspace_max: some(4),
    }
}

fn model_limits(dice: &Dice) -> ModelLimits {
    let some = |max| dice.one_in(3).then(|| u32::try_from(dice.between(1, max)).expect("small"));
    ModelLimits { in_flight_max: some(2), in_flight_per_workspace_max: some(1) }
}

const MODELS: u64 = 3;

fn model_name(number: u64) -> String {
    format!("model-{number}")
}

/// Models with scripts of their own.
fn models(seed: u64, dice: &Dice) -> Arc<Providers> {
    let mut providers = Providers::build(Vec::new(), |_| None).expect("nothing to configure");
    for number in 0..MODELS {
        let script: Script = serde_json::from_value(script(seed ^ number, dice)).expect("a valid script");
        let name = model_name(number);
        providers = providers.with_scripted(name.clone(), [name], script);
    }
    Arc::new(providers)
}

fn script(seed: u64, dice: &Dice) -> Value {
    let call = || match dice.between(0, 9) {
        0 => json!({"tool": "weather", "input": {"city": dice.between(0, 99)}}),
        1 => json!({"tool": "unheard-of", "input": {}}),
        2 => json!({"tool": "bash", "input": {"command": "fail"}}),
        _ => json!({"tool": "bash", "input": {"command": format!("run {}", dice.between(0, 999))}}),
    };
    let text = || {
        let words = (0..dice.between(1, 8)).map(|_| format!("word{}", dice.between(0, 99)));
        json!({"text": words.collect::<Vec<_>>().join(" ")})
    };
    let mut replies: Vec<Value> = (0..dice.between(1, 6))
        .map(|_| {
            let mut blocks = Vec::new();
            if dice.one_in(3) {
                blocks.push(json!({"thinking": "so"}));
            }
            if dice.one_in(2) {
                blocks.push(text());
            }
            blocks.extend((0..dice.between(0, 3)).map(|_| call()));
            if blocks.is_empty() {
                blocks.push(text());
            }
            let stop = match dice.between(0, 19) {
                0 => json!("refusal"),
                1 => json!("max_tokens"),
                // One that says nothing would be asked for again and again.
                2 => {
                    blocks.push(text());
                    json!("pause_turn")
                }
                _ => Value::Null,
            };
            let slow = dice.one_in(8);
            let first_token_ms = if slow { dice.between(5_000, 30_000) } else { dice.between(0, 1_500) };
            json!({
                "blocks": blocks, "stop": stop,
                "first_token": {"kind": "fixed", "ms": first_token_ms},
                "token_ms": dice.between(0, 300),
            })
        })
        .collect();
    // However it goes on, a turn comes to an end.
    replies.push(json!({"blocks": [text()]}));
    let fails_one_in = *dice.pick(&[0, 0, 20, 4, 2]);
    json!({"replies": replies, "on_end": "repeat", "seed": seed, "fails_one_in": fails_one_in})
}

/// Lives one seed, twice if that is asked for; gives its misfortunes, or what is wrong with it.
fn attempt(seed: u64, twice: bool) -> Result<BTreeMap<&'static str, u64>, String> {
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let first = live(seed);
        if twice {
            let second = live(seed);
            assert!(first == second, "not the same twice:\n{first}\n────── and then\n{second}");
        }
        first.misfortunes
    }));
    lived.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
    })
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

#[test]
fn whatever_befalls_them_sessions_come_to_rest_and_every_log_is_whole() {
    if let Some(seed) = number_in("POSTHOUSE_SIMULATE_SEED") {
        println!("{}", live(seed));
        return;
    }
    let seeds = number_in("POSTHOUSE_SIMULATED_SEEDS").unwrap_or(SEEDS);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let all = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    match attempt(seed, seed % TWICE_EVERY == 0) {
                        Ok(misfortunes) => {
                            let mut all = all.lock().expect("not poisoned");
                            for (name, count) in misfortunes {
                                *all.entry(name).or_insert(0) += count;
                            }
                        }
                        Err(wrong) => {
                            println!(
                                "seed {seed}: {wrong}\nto live it again: cargo xtask soak --simulate-seed {seed}"
                            );
                            failed.lock().expect("not poisoned").push(seed);
                        }
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("not poisoned");
    failed.sort_unstable();
    let all = all.into_inner().expect("not poisoned");
    for (name, count) in &all {
        println!("{count:>9} {name}");
    }
    assert!(failed.is_empty(), "of {seeds} seeds these failed, each as printed above: {failed:?}");
    // What never happens is not tested.
    assert_eq!(all.len(), MISFORTUNES, "kinds of misfortune");
}
