//! The life of the supervisor: lock, clean up, go into the background, serve, end.
//!
//! One thread and one loop, which never waits for anything but the loop's own events. It ends when it is told to, when no server has
//! been connected for a while, or by any signal; in the last case the kernel takes its sandboxes down with it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use tools::wire::encode;

use super::frames::{Flow, Frames};
use super::guests::Doors;
use super::keeper::{Announced, Asked, Keeper, TICK, Waiter};
use super::passing::Outgoing;
use super::place::{Lock, Place, peer_is_own_user};
use super::poller::{Interest, Poller, Token};
use super::protocol::{Answer, Ask, PROTOCOL, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, Request, Response};
use crate::doctor::Report;
use crate::namespaces::cgroups::{self, Groups};
use crate::namespaces::probe::Findings;
use crate::namespaces::profile::{Profile, clean_folder};
use crate::namespaces::start::OnlyThread;
use crate::namespaces::{seccomp, sys};
use crate::provider::{Error, Network, SandboxId};

/// How long to stay without a server, unless one says otherwise: longer than a restart or an upgrade takes.
const IDLE_EXIT: Duration = Duration::from_secs(600);
/// How often a supervisor without a server looks whether its data directory is still there.
const LOOK: Duration = Duration::from_secs(5);
/// Servers, benchmarks and a few people with `posthouse doctor`.
const CONNECTIONS_MAX: usize = 64;
/// Of one server at one go: each may start a sandbox, and what is ready meanwhile must not wait for all of them.
const REQUESTS_PER_ROUND: usize = 4;
/// Bytes that may wait for one server: two of the largest answers.
const WAITING_BYTES_MAX: usize = 2 * RESPONSE_BYTES_MAX;

/// The supervisor. `arguments` are what [`super::Program`] was given to pass on: `--data-dir <folder>`, or `--probe` to print
/// what this machine allows, as JSON, and end.
///
/// Must be called by a process that has started no thread.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    sys::default_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A server's other children may have left descriptors open to be inherited; sandboxes must not find them.
    let done = sys::close_inherited().and_then(|()| match arguments.as_slice() {
        [flag] if flag == "--probe" => {
            probe().and_then(|report| Ok(serde_json::to_writer(io::stdout(), &report)?))
        }
        [flag, data] if flag == "--data-dir" => supervise(Path::new(data)),
        _ => Err(io::Error::other("usage: --data-dir <folder> | --probe")),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What this machine allows, found out by trying, without a supervisor.
///
/// Must be called by a process that has started no thread; where there may be some, ask [`super::Supervised::report`].
pub fn probe() -> io::Result<Report> {
    let only = OnlyThread::prove()?;
    let folder = std::env::temp_dir().join(format!("posthouse-probe-{}", std::process::id()));
    clean_folder(&folder)?;
    rustix::process::chdir(&folder)?;
    let groups = Groups::find(&format!("probe-{}", std::process::id()));
    let report = Findings::gather(&only).report(&groups);
    groups.remove();
    rustix::process::chdir("/")?;
    std::fs::remove_dir_all(&folder)?;
    Ok(report)
}

fn supervise(data: &Path) -> io::Result<()> {
    let place = Place::open(data)?;
    // Another one is at work: whoever started us can speak to that one.
    let Some(lock) = place.lock()? else { return Ok(()) };
    let (mut ready, waiting) = io::pipe()?;
    let only = OnlyThread::prove()?;
    match only.fork()? {
        sys::Forked::Parent(child) => {
            drop(waiting);
            let mut message = String::new();
            ready.read_to_string(&mut message)?;
            match message.strip_prefix("ready") {
                Some(_) => Ok(()),
                // It has told the log.
                None => Err(io::Error::other(format!("process {child} ended before it was ready"))),
            }
        }
        sys::Forked::Child => {
            drop(ready);
            let mut waiting = File::from(std::os::fd::OwnedFd::from(waiting));
            let served = Supervisor::start(only, &place, &lock).and_then(|supervisor| {
                waiting.write_all(b"ready")?;
                drop(waiting);
                supervisor.serve(&place)
            });
            if let Err(error) = served {
                eprintln!("supervisor: {error}");
                return Err(error);
            }
            Ok(())
        }
    }
}

struct Supervisor {
    poller: Rc<Poller>,
    listener: UnixListener,
    keeper: Keeper,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    idle_exit: Duration,
    ending: bool,
}

struct Connection {
    frames: Frames,
    interest: Interest,
    standing: Standing,
    /// It has asked for more than was done at one go.
    is_behind: bool,
    /// What brings exits, if this connection is for that.
    exits: Option<Outgoing>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Has not said who it is.
    Stranger,
    /// A server that speaks our version. While there is one, the supervisor stays.
    Server,
    /// Speaks another version: may say `End` only.
    Foreign,
    /// To be dropped.
    Broken,
}

impl Supervisor {
    fn start(only: OnlyThread, place: &Place, lock: &Lock) -> io::Result<Self> {
        sys::new_session()?;
        raise_open_files();
        clear_groups(&place.recorded_groups());
        let work = place.work();
        clean_folder(&work)?;
        // The children start from here: with a sandbox's ids they could not walk the way to it.
        rustix::process::chdir(&work)?;
        let groups = Groups::find(&place.instance());
        place.record_groups(groups.folders())?;
        let findings = Findings::gather(&only);
        let report = findings.report(&groups);
        let profile = Profile::prepare(&findings, groups)?;
        let poller = Rc::new(Poller::new()?);
        let listener = place.listen(lock)?;
        poller.add(&listener, Token::Listener)?;
        let filter = profile.filter.is_some().then(seccomp::for_containers);
        let doors = Doors::new(place.doors(), filter)?;
        let keeper = Keeper::new(only, Rc::clone(&poller), profile, report, place.shelf(), doors);
        Ok(Self {
            poller,
            listener,
            keeper,
            connections: HashMap::new(),
            next_connection: 0,
            idle_exit: IDLE_EXIT,
            ending: false,
        })
    }

    fn serve(mut self, place: &Place) -> io::Result<()> {
        let mut lonely_since = Some(Instant::now());
        let mut ticked = Instant::now();
        while !self.ending {
            let timeout = match (self.keeper.needs_ticks(), lonely_since) {
                (true, _) => Some(TICK),
                (false, Some(since)) => Some(self.idle_exit.saturating_sub(since.elapsed()).min(LOOK)),
                (false, None) => None,
            };
            let refill = self.keeper.refill_due(Instant::now());
            let behind = self.behind();
            let at_once = (!behind.is_empty()).then_some(Duration::ZERO);
            let events = self.poller.wait(timeout.into_iter().chain(refill).chain(at_once).min())?;
            let now = Instant::now();
            for event in events {
                match event {
                    Token::Listener => self.accept(),
                    Token::Connection(key) => self.hear(key, now),
                    Token::Control(key) => self.keeper.control_ready(key, now),
                    Token::Sync(key) => self.keeper.sync_ready(key, now),
                    Token::Process(key) => self.keeper.process_ended(key, now),
                    Token::Masks => self.keeper.masks_ready(now),
                    Token::Door(key) => self.keeper.door_ready(key, now),
                    Token::Greeting(key) => self.keeper.greeting_ready(key, now),
                    Token::Packer(key) => self.keeper.packer_ended(key, now),
                }
            }
            for key in behind {
                self.hear(key, now);
            }
            if now.duration_since(ticked) >= TICK {
                ticked = now;
                self.keeper.tick(now);
            }
            // Before the answer that a sandbox is there: then its exit is on its way, too.
            self.bring_exits();
            self.answer();
            self.drop_broken();
            // Last: whoever has just been given a sandbox goes first.
            self.keeper.refill(now);
            let accompanied =
                self.connections.values().any(|connection| connection.standing == Standing::Server);
            lonely_since = if accompanied { None } else { lonely_since.or(Some(now)) };
            let waited = |since| now.duration_since(since) >= self.idle_exit;
            self.ending |= lonely_since.is_some_and(|since| waited(since) || !place.exists());
        }
        // Nobody shall find the door of a house that is being torn down; the lock holds until it is gone.
        place.remove_socket();
        drop(self.listener);
        self.keeper.destroy_all();
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let welcome =
                self.connections.len() < CONNECTIONS_MAX && peer_is_own_user(&stream).unwrap_or(false);
            if !welcome {
                continue;
            }
            let Ok(frames) = Frames::new(stream, REQUEST_BYTES_MAX, WAITING_BYTES_MAX) else { continue };
            let key = self.next_connection;
            self.next_connection += 1;
            if self.poller.add(frames.descriptor(), Token::Connection(key)).is_ok() {
                self.connections.insert(
                    key,
                    Connection {
                        frames,
                        interest: Interest::Read,
                        standing: Standing::Stranger,
                        is_behind: false,
                        exits: None,
                    },
                );
            }
        }
    }

    /// Connections whose requests are not all done.
    fn behind(&self) -> Vec<u64> {
        let behind = self.connections.iter().filter(|(_, connection)| connection.is_behind);
        behind.map(|(key, _)| *key).collect()
    }

    /// Takes in what a server says, and writes what it has room for.
    fn hear(&mut self, key: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let mut requests = Vec::new();
        let flushed = connection.frames.flush().and_then(|()| match &mut connection.exits {
            Some(exits) => exits.flush(connection.frames.descriptor()),
            None => Ok(()),
        });
        // Nothing more is read of one that is behind: what it has sent must not pile up here.
        let read = |frames: &mut Frames, is_behind| if is_behind { Ok(Flow::Open) } else { frames.fill() };
        let was_behind = std::mem::take(&mut connection.is_behind);
        let heard = flushed.and_then(|()| read(&mut connection.frames, was_behind)).and_then(|flow| {
            while let Some(frame) = connection.frames.next()? {
                requests.push(serde_json::from_slice::<Request>(&frame)?);
                // Of one that is gone everything is done now: there is no other time.
                if requests.len() == REQUESTS_PER_ROUND && flow == Flow::Open {
                    connection.is_behind = true;
                    break;
                }
            }
            Ok(flow)
        });
        match heard {
            Ok(Flow::Open) => {}
            // What was asked before the end still counts; its answers go nowhere.
            Ok(Flow::Ended) | Err(_) => connection.standing = Standing::Broken,
        }
        let standing = connection.standing;
        update_interest(&self.poller, key, connection);
        for Request { id, ask } in requests {
            self.perform(Waiter { connection: key, request: id }, standing, ask, now);
        }
    }

    fn perform(&mut self, waiter: Waiter, standing: Standing, ask: Ask, now: Instant) {
        // Read again: the greeting and what follows it may come together.
        let standing =
            self.connections.get(&waiter.connection).map_or(standing, |connection| connection.standing);
        match (ask, standing) {
            (Ask::Hello { protocol, idle_exit_ms }, _) => {
                let matches = protocol == PROTOCOL;
                if let Some(connection) = self.connections.get_mut(&waiter.connection)
                    && connection.standing == Standing::Stranger
                {
                    connection.standing = if matches { Standing::Server } else { Standing::Foreign };
                }
                if let Some(milliseconds) = idle_exit_ms.filter(|_| matches) {
                    self.idle_exit = Duration::from_millis(milliseconds);
                }
                self.respond(waiter, Answer::Hello { protocol: PROTOCOL, pid: std::process::id() });
            }
            (Ask::End {}, _) => {
                self.ending = true;
                self.respond(waiter, Answer::Done {});
            }
            (_, Standing::Stranger | Standing::Foreign) => {
                let reason = "say hello first, in this supervisor's version".to_owned();
                self.respond(waiter, Answer::Failed(Error::Refused { reason }));
            }
            (Ask::Report {}, _) => self.respond(waiter, Answer::Report(self.keeper.report().clone())),
            (Ask::Provision { sandbox, fence, resources, layer }, _) => {
                self.keeper.provision(Asked { waiter, id: sandbox, fence, resources, layer }, now);
            }
            (Ask::Adopt { sandbox, fence, resources, first_id }, _) => {
                self.keeper.adopt(Announced { waiter, id: sandbox, fence, resources, first_id }, now);
            }
            (Ask::Adopted { sandbox, fence }, _) => self.keeper.adopted(waiter, &sandbox, fence, now),
            (Ask::Relay { sandbox, fence, op }, _) => {
                self.keeper.relay(waiter, &sandbox, fence, &op, now);
            }
            (Ask::Touch { sandbox, fence }, _) => self.keeper.touch(waiter, &sandbox, fence, now),
            (Ask::Save { sandbox, fence, into }, _) => {
                self.keeper.save(waiter, &sandbox, fence, &into, now);
            }
            (Ask::Destroy { sandbox }, _) => self.keeper.destroy(waiter, sandbox, now),
            (Ask::List {}, _) => self.respond(waiter, Answer::List(self.keeper.list(now))),
            (Ask::Hold { capacity, will_install }, _) => {
                self.keeper.hold(capacity, will_install, now);
                self.respond(waiter, Answer::Done {});
            }
            (Ask::KeepReady { pools }, _) => {
                self.keeper.keep_ready(waiter.connection, pools);
                self.respond(waiter, Answer::Done {});
            }
            (Ask::Occupancy {}, _) => self.respond(waiter, Answer::Occupancy(self.keeper.occupancy())),
            (Ask::Exits {}, _) => {
                if let Some(connection) = self.connections.get_mut(&waiter.connection) {
                    connection.exits.get_or_insert_default();
                    let exits = self.keeper.exits();
                    bring(&self.poller, waiter.connection, connection, &exits, &[]);
                }
            }
        }
    }

    /// Brings the exits of new sandboxes, and the end of others, to whoever asked for exits.
    fn bring_exits(&mut self) {
        let (opened, closed) = self.keeper.take_exits();
        if opened.is_empty() && closed.is_empty() {
            return;
        }
        for (key, connection) in &mut self.connections {
            bring(&self.poller, *key, connection, &opened, &closed);
        }
    }

    fn answer(&mut self) {
        for (waiter, answer) in self.keeper.take_replies() {
            self.respond(waiter, answer);
        }
    }

    fn respond(&mut self, waiter: Waiter, answer: Answer) {
        // Whoever asked may be gone; `tools` keeps what a call produced.
        let Some(connection) = self.connections.get_mut(&waiter.connection) else { return };
        let response = Response { id: waiter.request, answer };
        let frame = encode(&response, RESPONSE_BYTES_MAX).or_else(|error| {
            let failed = Answer::Failed(Error::unavailable(error));
            encode(&Response { id: waiter.request, answer: failed }, RESPONSE_BYTES_MAX)
        });
        let sent = frame.map_err(io::Error::other).and_then(|frame| connection.frames.send(&frame));
        match sent {
            Ok(()) => update_interest(&self.poller, waiter.connection, connection),
            Err(_) => connection.standing = Standing::Broken,
        }
    }

    fn drop_broken(&mut self) {
        self.connections.retain(|key, connection| {
            let keep = connection.standing != Standing::Broken;
            if !keep {
                self.keeper.forget(*key);
                self.poller.remove(connection.frames.descriptor());
            }
            keep
        });
    }
}

fn bring(
    poller: &Poller,
    key: u64,
    connection: &mut Connection,
    opened: &[(SandboxId, Network, OwnedFd)],
    closed: &[SandboxId],
) {
    let Some(outgoing) = &mut connection.exits else { return };
    let socket = connection.frames.descriptor();
    let mut send = |answer: Answer, exit: Option<&OwnedFd>| {
        // No question is answered by it, so its id says nothing.
        let message = encode(&Response { id: 0, answer }, RESPONSE_BYTES_MAX).map_err(io::Error::other)?;
        outgoing.send(socket, message, exit.map(OwnedFd::try_clone).transpose()?)
    };
    let told = opened.iter().try_for_each(|(sandbox, network, exit)| {
        send(Answer::Exit { sandbox: sandbox.clone(), network: network.clone() }, Some(exit))
    });
    let told = told.and_then(|()| {
        closed.iter().try_for_each(|sandbox| send(Answer::ExitEnded { sandbox: sandbox.clone() }, None))
    });
    match told {
        Ok(()) => update_interest(poller, key, connection),
        Err(_) => connection.standing = Standing::Broken,
    }
}

fn update_interest(poller: &Poller, key: u64, connection: &mut Connection) {
    let has_output =
        connection.frames.has_output() || connection.exits.as_ref().is_some_and(|exits| !exits.is_empty());
    let wanted = if has_output { Interest::ReadAndWrite } else { Interest::Read };
    if wanted != connection.interest {
        connection.interest = wanted;
        let _ = poller.change(connection.frames.descriptor(), Token::Connection(key), wanted);
    }
}

/// Every sandbox takes a few descriptors, and the usual soft limit would end at some hundreds. What it gets of its own is set by
/// its limits.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    // Without it there is room for fewer, and the next one gets an error that says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Ends what an earlier supervisor left. Its processes died with it; only folders should be there, and a few moments of
/// patience are enough for the last of them.
fn clear_groups(folders: &[PathBuf]) {
    for _ in 0..50 {
        let cleared = folders.iter().filter(|folder| !cgroups::clear(folder)).count() == 0;
        if cleared {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
