//! A container engine of the tests' own: `dockerd`, or Podman's service, in a folder and a network namespace of its own, without
//! a bridge and without touching the machine's packet filter; and the image that the tests' containers are made from.
//!
//! It needs root and Debian's `docker.io`, or `podman`. Where it cannot be had, whoever asks learns why, and which command helps.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bollard::Docker as Client;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt as _;

/// A runtime to run the containers with, instead of the engine's own: its program's name or path.
pub const RUNTIME: &str = "POSTHOUSE_TEST_RUNTIME";
/// Which engine: `docker`, or `podman`.
const ENGINE: &str = "POSTHOUSE_TEST_ENGINE";
/// The image with the host's own tools in it.
pub const IMAGE: &str = "posthouse-test:tools";
/// An image with a busybox and nothing else.
pub const SMALL_IMAGE: &str = "posthouse-test:small";

/// What brings an engine and runs these tests.
const HOW: &str = "`cargo xtask containers` as root installs Debian's docker.io and runs them";

/// Waits for words and does what they say; at the end of its input it cleans up, however the tests have ended. `$1` is the
/// folder; the rest is for `dockerd`.
const KEEPER: &str = r#"
folder=$1; shift
while read -r word; do
    case $word in
    start) unshare --net --mount sh -c "$PREPARE"'exec "$@"' sh "$@" >> "$folder/log" 2>&1 & pid=$! ;;
    # Both halves; what watches over the containers lives on.
    kill) kill -KILL $pid $(cat "$folder/exec/containerd/containerd.pid" 2> /dev/null); rm -f "$folder/exec/containerd/containerd.pid"; wait $pid 2> /dev/null; echo killed > "$folder/killed" ;;
    esac
done
kill -TERM $pid; wait $pid
# Of an engine that was killed, those remain that watch over its containers.
for process in /proc/[0-9]*; do
    # This script, whose own words these are.
    [ $process = /proc/$$ ] && continue
    case $(tr '\0' ' ' < $process/cmdline 2> /dev/null) in
    *containerd*"$folder"* | *conmon*"$folder"*) kill -KILL ${process#/proc/} ;;
    esac
done
for mount in $(cut -d ' ' -f 2 /proc/mounts | grep "^$folder/" | sort -r); do umount -l "$mount"; done
rm -rf "$folder"
"#;

/// As an image is: a few programs of the host with the libraries that they name, and Python's own modules.
const PACK: &str = r#"
set -e
cd /
programs="bash sh awk mawk cat chmod cmp cp cut date dd du echo env false find fold getent grep head hostname id kill ln ls md5sum
    mkdir mkfifo mknod mv nohup od pgrep printf ps pwd readlink realpath rm rmdir sed seq setsid sha1sum sha256sum sleep sort stat sync
    tail tee test timeout touch tr true truncate uname uniq wc whoami xargs python3 gzip tar"
files=""
for name in $programs; do
    for place in /usr/bin /usr/sbin; do
        [ -e $place/$name ] && files="$files $place/$name $(readlink -f $place/$name)"
    done
done
modules=$(ls -d /usr/lib/python3.*/ | head -n 1)
wanted=$(echo $files | tr ' ' '\n'; find $modules/lib-dynload -name '*.so')
libraries=$(ldd $wanted 2> /dev/null | grep -o '/[^ :)]*' | grep '\.so' | sort -u)
for library in $libraries; do files="$files $library $(readlink -f $library)"; done
# Names below the links in the root are those below /usr.
files=$(echo $files | tr ' ' '\n' | sed -e 's#^/lib#/usr/lib#' -e 's#^/usr/usr#/usr#' -e 's#^/bin#/usr/bin#' | grep -v "^$modules" | sort -u | sed 's#^/##')
[ -d usr/lib/python3/dist-packages/pip ] && extra="usr/lib/python3/dist-packages/pip etc/ssl/certs/ca-certificates.crt"
tar --create --file "$1" --exclude '*/test' --exclude '*/__pycache__' --exclude '*/idlelib' --exclude '*/lib2to3' \
    --exclude '*/ensurepip' --exclude '*/config-3*' \
    bin sbin lib lib64 etc/passwd etc/group etc/nsswitch.conf etc/ld.so.cache $extra ${modules#/} $files
"#;

/// An engine of one's own. It and everything of it goes when this is dropped or the process ends.
pub struct Engine {
    keeper: Child,
    folder: PathBuf,
}

impl Engine {
    /// The one that most tests share.
    ///
    /// # Errors
    ///
    /// Why there is none, and which command helps.
    pub fn shared() -> Result<&'static Self, &'static str> {
        static SHARED: OnceLock<Result<Engine, String>> = OnceLock::new();
        SHARED.get_or_init(Engine::start).as_ref().map_err(String::as_str)
    }

    /// Starts one, with both images in it.
    ///
    /// # Errors
    ///
    /// Why it cannot be started, and which command helps.
    pub fn start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err(format!("only root can start a container engine; {HOW}"));
        }
        let has = |program: &str| {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|folder| folder.join(program).exists())
        };
        let needed: &[&str] = match is_podman() {
            true => &["podman", "conmon", "crun", "busybox"],
            false => &["dockerd", "containerd", "runc", "busybox"],
        };
        if let Some(missing) = needed.iter().find(|program| !has(program)) {
            return Err(format!("there is no `{missing}`; {HOW}"));
        }
        let folder = tempfile::Builder::new().prefix("posthouse-docker-").tempdir().unwrap().keep();
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let runtime = std::env::var(RUNTIME).ok();
        let mut options = vec![
            "dockerd".to_owned(),
            format!("--data-root={}", at("data")),
            format!("--exec-root={}", at("exec")),
            format!("--pidfile={}", at("pid")),
            format!("--host=unix://{}", at("sock")),
            // Its usual one is more than this machine's root may give.
            "--default-ulimit=nofile=4096:4096".to_owned(),
        ];
        options.extend(
            ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
                .map(str::to_owned),
        );
        if let Some(runtime) = runtime.clone().filter(|runtime| runtime != "runc") {
            let config = at("daemon.json");
            // A kernel of its own reaches a socket of the host's only if it is told to.
            let arguments: &[&str] = if runtime.contains("runsc") {
                &["--network=none", "--host-uds=open", "--ignore-cgroups"]
            } else {
                &[]
            };
            let words =
                serde_json::json!({"runtimes": {"test": {"path": runtime, "runtimeArgs": arguments}}});
            fs::write(&config, words.to_string()).unwrap();
            options.push(format!("--config-file={config}"));
        }
        // Where a machine has control groups of both versions, `crun` insists on seeing one.
        let is_crun = is_crun();
        if is_podman() {
            options = vec![
                "podman".to_owned(),
                format!("--root={}", at("data")),
                format!("--runroot={}", at("exec")),
                format!("--tmpdir={}", at("exec")),
                "--cgroup-manager=cgroupfs".to_owned(),
                "--events-backend=none".to_owned(),
            ];
            options.extend(runtime.map(|runtime| format!("--runtime={runtime}")));
            options.extend(["system", "service", "--time=0"].map(str::to_owned));
            options.push(format!("unix://{}", at("sock")));
        }
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&folder)
            .args(options)
            .env("PREPARE", if is_crun { "umount /sys/fs/cgroup/unified 2> /dev/null; " } else { "" })
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("sh cannot be started: {error}"))?;
        let mut engine = Self { keeper, folder };
        engine.start_again()?;
        // An engine that runs and takes no image is a test that fails.
        engine.bring_images().unwrap();
        Ok(engine)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    /// Kills the engine; its containers live on without it.
    pub fn kill(&mut self) {
        self.say("kill");
        let killed = self.folder.join("killed");
        wait("the engine is dead", || killed.exists()).unwrap();
        fs::remove_file(killed).unwrap();
    }

    /// Starts it after its death.
    pub fn start_again(&mut self) -> Result<(), String> {
        let _ = fs::remove_file(self.folder.join("pid"));
        self.say("start");
        let socket = self.socket();
        let answers = || {
            let Ok(client) = client(&socket) else { return false };
            block_on(async move { client.ping().await.is_ok() })
        };
        wait("the engine answers", answers)
            .map_err(|never| format!("{never}; it says:\n{}\n{HOW}", self.last_words()))
    }

    /// Somebody to ask it.
    pub fn client(&self) -> Client {
        client(&self.socket()).unwrap()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.keeper.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn bring_images(&self) -> Result<(), String> {
        let archive = self.folder.join("image.tar");
        let packed = Command::new("sh").args(["-c", PACK, "sh"]).arg(&archive).output().unwrap();
        if !packed.status.success() {
            return Err(format!("no image can be packed: {}", String::from_utf8_lossy(&packed.stderr)));
        }
        self.import(IMAGE, fs::read(&archive).unwrap(), &[])?;
        fs::remove_file(&archive).unwrap();
        let small = self.folder.join("small");
        fs::create_dir_all(small.join("bin")).unwrap();
        fs::copy("/bin/busybox", small.join("bin/busybox")).unwrap();
        for name in ["sh", "cat", "ls", "echo", "id", "head", "wc"] {
            std::os::unix::fs::symlink("busybox", small.join("bin").join(name)).unwrap();
        }
        let tar =
            Command::new("tar").args(["--create", "--directory"]).arg(&small).arg(".").output().unwrap();
        self.import(SMALL_IMAGE, tar.stdout, &["VOLUME /data"])
    }

    fn import(&self, name: &str, archive: Vec<u8>, changes: &[&str]) -> Result<(), String> {
        let client = self.client();
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(name).changes(changes).build();
        block_on(async move {
            let mut told = client.create_image(Some(options), Some(bollard::body_full(archive.into())), None);
            while let Some(line) = told.next().await {
                line.map_err(|error| format!("the image is not taken: {error}"))?;
            }
            Ok(())
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Whether the tests are to use Podman.
pub fn is_podman() -> bool {
    std::env::var(ENGINE).is_ok_and(|engine| engine == "podman")
}

/// Whether the containers are run by `crun`, which is what Podman takes unless it is told otherwise.
pub fn is_crun() -> bool {
    std::env::var(RUNTIME).map_or(is_podman(), |runtime| runtime.contains("crun"))
}

/// The names of all containers of a data directory, whatever their state.
pub fn containers_of(socket: &str, instance: &str) -> Vec<String> {
    let client = client(Path::new(socket)).unwrap();
    let options = bollard::query_parameters::ListContainersOptionsBuilder::default().all(true).build();
    let found = block_on(async move {
        loop {
            match client.list_containers(Some(options.clone())).await {
                // One is in a state of Podman's that the client has no word for; it does not last.
                Err(bollard::errors::Error::JsonDataError { .. }) => tokio::task::yield_now().await,
                found => break found.unwrap(),
            }
        }
    });
    let names = found.into_iter().flat_map(|container| container.names.unwrap_or_default());
    let names = names.map(|name| name.trim_start_matches('/').to_owned());
    names.filter(|name| name.starts_with(&format!("posthouse-{instance}-"))).collect()
}

/// The engine's own names of these containers.
pub fn ids_of(socket: &str, names: &[String]) -> Vec<String> {
    let client = client(Path::new(socket)).unwrap();
    let names = names.to_vec();
    block_on(async move {
        let mut ids = Vec::new();
        for name in names {
            ids.extend(client.inspect_container(&name, None).await.ok().and_then(|found| found.id));
        }
        ids
    })
}

/// How many networks an engine has.
pub fn networks_of(socket: &str) -> usize {
    let client = client(Path::new(socket)).unwrap();
    let options = bollard::query_parameters::ListNetworksOptionsBuilder::default().build();
    block_on(async move { client.list_networks(Some(options)).await.unwrap().len() })
}

/// The engine's images that are layers of a data directory.
pub fn layers_of(socket: &str, instance: &str) -> Vec<String> {
    let client = client(Path::new(socket)).unwrap();
    let options = bollard::query_parameters::ListImagesOptionsBuilder::default().build();
    let found = block_on(async move { client.list_images(Some(options)).await.unwrap() });
    let names = found.into_iter().flat_map(|image| image.repo_tags);
    names.filter(|name| name.contains("posthouse-layer:") && name.ends_with(instance)).collect()
}

/// Process 1 of each of these containers that runs, as the host numbers it.
pub fn pids_of(socket: &str, names: &[String]) -> Vec<i32> {
    let client = client(Path::new(socket)).unwrap();
    let names = names.to_vec();
    block_on(async move {
        let mut pids = Vec::new();
        for name in names {
            let found = client.inspect_container(&name, None).await.ok();
            pids.extend(found.and_then(|found| i32::try_from(found.state?.pid?).ok()).filter(|pid| *pid > 0));
        }
        pids
    })
}

fn client(socket: &Path) -> Result<Client, bollard::errors::Error> {
    Client::connect_with_unix(socket.to_str().unwrap(), 60, bollard::API_DEFAULT_VERSION)
        .and_then(|client| block_on(client.negotiate_version()))
}

/// Runs to its end what belongs to no test's runtime.
fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

fn wait(what: &str, mut so: impl FnMut() -> bool) -> Result<(), String> {
    for _ in 0..1500 {
        if so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("never: {what}"))
}
