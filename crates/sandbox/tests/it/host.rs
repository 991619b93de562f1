//! A data directory with a supervisor of its own, short ways to use it, and eyes on the processes below it.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use egress::{Guard, Policy, PrivateHosts};
use rustix::process::{Pid, Signal};
use sandbox::doctor::Report;
use sandbox::{
    Call, Capacity, Docker, Error, Occupancy, Output, Patience, Program, Provider, Resources, SandboxId,
    Settings, Supervised, docker,
};
use serde_json::{Value, json};
use tools::wire::{Content, encode, read_frame};

use crate::door::{Door, network};

/// Names the supervisor program where the one that cargo built cannot be reached.
pub(crate) const SUPERVISOR: &str = "POSTHOUSE_TEST_SUPERVISOR";

/// Gives every sandbox the rights to install packages.
pub(crate) const INSTALLS: &str = "POSTHOUSE_TEST_INSTALLS";

/// Whether every sandbox has them in this run.
pub(crate) fn installs() -> bool {
    std::env::var_os(INSTALLS).is_some()
}

/// Gives every sandbox a network, whose exit the real proxy serves.
pub(crate) const EXITS: &str = "POSTHOUSE_TEST_EXITS";

/// Whether every sandbox has one in this run.
pub(crate) fn has_exits() -> bool {
    std::env::var_os(EXITS).is_some()
}

/// Names an engine's socket, where sandboxes are to be its containers.
pub(crate) const CONTAINERS: &str = "POSTHOUSE_TEST_CONTAINERS";

pub(crate) struct Host {
    pub(crate) provider: Hands,
    engine: Option<docker::Settings>,
    settings: Settings,
    /// Serves what a sandbox of a run with exits was given.
    door: OnceLock<Door>,
    /// Keeps the data directory; `None` where somebody else does.
    _data: Option<tempfile::TempDir>,
}

fn engine_at(socket: String) -> docker::Settings {
    let runtime = std::env::var(testkit::engine::RUNTIME).ok().filter(|runtime| runtime != "runc");
    docker::Settings {
        host: socket,
        image: testkit::engine::IMAGE.to_owned(),
        // Podman's service runs them with what it was started with.
        runtime: runtime.filter(|_| !testkit::engine::is_podman()).map(|_| "test".to_owned()),
        ..docker::Settings::default()
    }
}

/// The provider under test, and the supervisor below it.
pub(crate) struct Hands {
    provider: Arc<dyn Provider>,
    supervised: Arc<Supervised>,
    docker: Option<Arc<Docker>>,
}

impl Hands {
    fn new(settings: &Settings, engine: Option<&docker::Settings>) -> Self {
        let supervised = Arc::new(Supervised::new(settings.clone()));
        let docker = engine.map(|engine| Arc::new(Docker::new(Arc::clone(&supervised), engine.clone())));
        let provider: Arc<dyn Provider> = match &docker {
            Some(docker) => Arc::clone(docker) as _,
            None => Arc::clone(&supervised) as _,
        };
        Self { provider, supervised, docker }
    }

    pub(crate) fn docker(&self) -> &Docker {
        self.docker.as_ref().expect("its sandboxes are containers")
    }

    pub(crate) async fn report(&self) -> Result<Report, Error> {
        self.supervised.report().await
    }

    pub(crate) async fn occupancy(&self) -> Result<Occupancy, Error> {
        self.supervised.occupancy().await
    }

    pub(crate) async fn end(&self) -> Result<(), Error> {
        self.supervised.end().await
    }
}

impl std::ops::Deref for Hands {
    type Target = dyn Provider;

    fn deref(&self) -> &Self::Target {
        &*self.provider
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self::at(data.path().to_owned(), Some(data))
    }

    pub(crate) fn at(data_dir: PathBuf, kept: Option<tempfile::TempDir>) -> Self {
        let path = std::env::var_os(SUPERVISOR)
            .map_or(env!("CARGO_BIN_EXE_posthouse-supervisor").into(), PathBuf::from);
        let settings =
            Settings { program: Program { path, arguments: Vec::new() }, ..Settings::new(data_dir) };
        let engine = std::env::var(CONTAINERS).ok().map(engine_at);
        Self {
            provider: Hands::new(&settings, engine.as_ref()),
            engine,
            settings,
            door: OnceLock::new(),
            _data: kept,
        }
    }

    /// With an engine's containers as sandboxes.
    pub(crate) fn of_containers(socket: &str) -> Self {
        let mut host = Self::new();
        host.engine = Some(engine_at(socket.to_owned()));
        host.provider = host.another();
        host
    }

    /// The same with other choices.
    pub(crate) fn with_engine(mut self, change: impl FnOnce(&mut docker::Settings)) -> Self {
        change(self.engine.as_mut().expect("its sandboxes are containers"));
        self.provider = self.another();
        self
    }

    /// Whether its sandboxes are containers, which legitimately differ in what a test then says.
    pub(crate) fn has_containers(&self) -> bool {
        self.engine.is_some()
    }

    /// By what its containers' names differ from those of other data directories.
    pub(crate) fn instance(&self) -> String {
        let folder = self.data().join("supervisor").canonicalize().unwrap();
        let hash =
            folder.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("{hash:016x}")
    }

    pub(crate) fn with_idle_exit(idle_exit: Duration) -> Self {
        let mut host = Self::new();
        host.settings.idle_exit = idle_exit;
        host.provider = host.another();
        host
    }

    pub(crate) fn with_capacity(mut self, capacity: Capacity) -> Self {
        self.settings.capacity = capacity;
        self.provider = self.another();
        self
    }

    pub(crate) fn with_registries(network: sandbox::Network) -> Self {
        let mut host = Self::new();
        host.settings.registries = Some(network);
        host.provider = host.another();
        host
    }

    /// The supervisor's program.
    pub(crate) fn program(&self) -> PathBuf {
        self.settings.program.path.clone()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.settings.data_dir
    }

    /// A folder that the sandboxes' users can reach.
    pub(crate) fn open_folder(&self) -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    /// Another server on the same data directory.
    pub(crate) fn another(&self) -> Hands {
        Hands::new(&self.settings, self.engine.as_ref())
    }

    /// Another server on the same data directory, which does not wait long for answers.
    pub(crate) fn impatient(&self) -> Hands {
        let soon = Duration::from_millis(500);
        let patience = Patience {
            hello: soon,
            provision: soon,
            room: soon,
            restore: soon,
            save: soon,
            control: soon,
            collect: soon,
            execute_grace: soon,
        };
        Hands::new(&Settings { patience, ..self.settings.clone() }, self.engine.as_ref())
    }

    /// This server dies and comes back.
    pub(crate) fn reconnect(&mut self) {
        self.provider = self.another();
    }

    /// This server dies; the next one to be used is a new one.
    pub(crate) fn disconnect(&mut self) {
        self.provider = self.another();
    }

    pub(crate) async fn report(&self) -> Report {
        self.provider.report().await.unwrap()
    }

    /// The supervisor that listens.
    pub(crate) fn supervisor(&self) -> Pid {
        // The long way round, because a socket's path may not be long.
        let folder = fs::File::open(self.data().join("supervisor")).unwrap();
        let path = format!("/proc/self/fd/{}/supervisor.sock", folder.as_raw_fd());
        let stream = UnixStream::connect(path).unwrap();
        rustix::net::sockopt::socket_peercred(stream).unwrap().pid
    }

    /// The containers that an engine has of this data directory.
    pub(crate) fn containers(&self) -> Vec<String> {
        match &self.engine {
            Some(engine) => testkit::engine::containers_of(&engine.host, &self.instance()),
            None => Vec::new(),
        }
    }

    /// The engine's socket.
    pub(crate) fn engine_socket(&self) -> &str {
        &self.engine.as_ref().expect("its sandboxes are containers").host
    }

    /// The layers that an engine has of this data directory.
    pub(crate) fn layers(&self) -> Vec<String> {
        match &self.engine {
            Some(engine) => testkit::engine::layers_of(&engine.host, &self.instance()),
            None => Vec::new(),
        }
    }

    /// Every process below the supervisor, and in the containers that it keeps.
    pub(crate) fn family(&self) -> Vec<Pid> {
        if let Some(engine) = &self.engine {
            let first = testkit::engine::pids_of(&engine.host, &self.containers());
            let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
            // A runtime that is a kernel of its own shows one process, in the host's own namespace.
            let own = fs::read_link("/proc/self/ns/pid").ok();
            let is_inside = |pid: &i32| {
                let found = namespace(*pid);
                first.iter().any(|one| one == pid || (namespace(*one) == found && found != own))
            };
            let family = processes().filter(is_inside);
            return family.filter_map(Pid::from_raw).collect();
        }
        let parents: Vec<(i32, i32)> = processes().filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut family = vec![self.supervisor().as_raw_nonzero().get()];
        let mut next = 0;
        while next < family.len() {
            let children = parents.iter().filter(|(_, parent)| *parent == family[next]).map(|(pid, _)| *pid);
            family.extend(children.collect::<Vec<_>>());
            next += 1;
        }
        family.into_iter().skip(1).filter_map(Pid::from_raw).collect()
    }

    pub(crate) fn is_alive(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        // A zombie that somebody else has yet to collect is dead.
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z') && !rest.starts_with('X'))
    }

    /// A new sandbox with these resources.
    pub(crate) async fn sandbox(&self, mut resources: Resources) -> Sandbox<'_> {
        if installs() {
            resources.rights = sandbox::Rights::Install;
        }
        if has_exits() && resources.network.is_none() {
            resources.network = Some(network(&Policy::Unrestricted {}));
            self.door.get_or_init(|| Door::guarded(self, Guard::new(PrivateHosts::default(), [])));
        }
        let id = fresh_id();
        self.provider.provision(&id, 1, &resources).await.unwrap();
        Sandbox { provider: &*self.provider, id }
    }

    /// Ends the supervisor and looks for what it may have left behind: processes, control groups, its socket.
    pub(crate) async fn end(self) {
        self.provider.report().await.unwrap();
        let (supervisor, family) = (self.supervisor(), self.family());
        let groups = fs::read_to_string(self.data().join("supervisor/control-groups")).unwrap();
        self.provider.end().await.unwrap();
        eventually("the supervisor ends", || !Self::is_alive(supervisor)).await;
        eventually("no container is left", || self.containers().is_empty()).await;
        let left: Vec<_> = family.into_iter().filter(|pid| Self::is_alive(*pid)).collect();
        assert!(left.is_empty(), "processes left: {left:?}");
        let left: Vec<_> = groups.lines().filter(|folder| Path::new(folder).exists()).collect();
        assert!(left.is_empty(), "control groups left: {left:?}");
        assert!(!self.data().join("supervisor/supervisor.sock").exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.data().to_str().unwrap()), "mounts left: {mounts}");
    }
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let looks = async {
        let mut between = tokio::time::interval(Duration::from_millis(5));
        while !so() {
            between.tick().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), looks).await.is_ok(), "never: {what}");
}

/// An id that no other test uses.
pub(crate) fn fresh_id() -> SandboxId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    SandboxId::parse(&format!("test-{number}")).unwrap()
}

/// A call that no other test makes.
pub(crate) fn call(id: &SandboxId, name: &str, input: Value) -> Call {
    Call {
        sandbox: id.clone(),
        call_id: fresh_id().to_string(),
        fence: 1,
        name: name.to_owned(),
        input,
        timeout: Duration::from_secs(60),
    }
}

/// A sandbox that lives.
pub(crate) struct Sandbox<'a> {
    pub(crate) provider: &'a dyn Provider,
    pub(crate) id: SandboxId,
}

impl Sandbox<'_> {
    pub(crate) fn call(&self, name: &str, input: Value) -> Call {
        call(&self.id, name, input)
    }

    pub(crate) async fn execute(&self, name: &str, input: Value) -> Output {
        self.provider.execute(self.call(name, input)).await.unwrap()
    }

    pub(crate) async fn try_bash(&self, command: &str) -> Result<Output, Error> {
        self.provider.execute(self.call("bash", json!({"command": command}))).await
    }

    /// What the command printed.
    pub(crate) async fn bash(&self, command: &str) -> String {
        text(&self.try_bash(command).await.unwrap())
    }

    pub(crate) async fn try_python(&self, program: &str) -> Result<String, Error> {
        let command = format!(
            "cat > /tmp/program.py <<'END_OF_PROGRAM'\n{PRELUDE}\n{program}\nEND_OF_PROGRAM\npython3 /tmp/program.py 2>&1"
        );
        self.try_bash(&command).await.map(|output| text(&output))
    }

    /// What the Python program printed.
    pub(crate) async fn python(&self, program: &str) -> String {
        self.try_python(program).await.unwrap()
    }
}

/// What attacks in Python start with: raw system calls, and the name of the error they end in.
const PRELUDE: &str = r#"
import ctypes, errno, os, platform, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
def name(number):
    return errno.errorcode.get(number, str(number))
def syscall(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return "ok" if result >= 0 else name(ctypes.get_errno())
def attempt(action):
    try:
        action()
        return "ok"
    except OSError as error:
        return name(error.errno)
"#;

/// The text of an output.
pub(crate) fn text(output: &Output) -> String {
    let texts = output.content.iter().map(|block| match block {
        Content::Text { text } => text.as_str(),
        Content::Image { .. } | Content::Document { .. } => "",
    });
    texts.collect::<String>().trim_end().to_owned()
}

/// Processes that are stopped, until this is dropped.
pub(crate) struct Stopped(Vec<Pid>);

impl Stopped {
    pub(crate) fn stop(pids: impl IntoIterator<Item = Pid>) -> Self {
        let stopped = Self(pids.into_iter().collect());
        for pid in &stopped.0 {
            rustix::process::kill_process(*pid, Signal::STOP).unwrap();
        }
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = rustix::process::kill_process(*pid, Signal::CONT);
        }
    }
}

/// A supervisor of an older version, as far as a newer server may rely on it.
pub(crate) struct OldSupervisor {
    told_to_end: Arc<AtomicBool>,
}

impl OldSupervisor {
    pub(crate) fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let told_to_end = Arc::new(AtomicBool::new(false));
        let (told, socket) = (Arc::clone(&told_to_end), socket.to_owned());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while let Ok(Some(request)) = read_frame::<Value>(&mut stream.by_ref(), 1 << 20) {
                let ends = request["ask"]["end"].is_object();
                let answer =
                    if ends { json!({"done": {}}) } else { json!({"hello": {"protocol": 0, "pid": 1}}) };
                let frame = encode(&json!({"id": request["id"], "answer": answer}), 1 << 20).unwrap();
                if ends {
                    told.store(true, Ordering::SeqCst);
                    fs::remove_file(&socket).unwrap();
                }
                std::io::Write::write_all(&mut stream, &frame).unwrap();
                if ends {
                    break;
                }
            }
        });
        Self { told_to_end }
    }

    pub(crate) fn was_told_to_end(&self) -> bool {
        self.told_to_end.load(Ordering::SeqCst)
    }
}

/// A folder with an `archive` of a tree whose file `run` prints `ran`.
pub(crate) fn tree() -> tempfile::TempDir {
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut archive = fs::File::create(folder.path().join("archive")).unwrap();
    let root = fs::File::open(&tree).unwrap();
    let place = tools::archive::Place { name: tools::wire::TREE, root: root.as_fd() };
    tools::archive::pack_places(&[place], &mut archive).unwrap();
    folder
}
