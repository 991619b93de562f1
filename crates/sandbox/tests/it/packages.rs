//! Package managers at work in sandboxes, through the real proxy, against the real registries.
//!
//! What a machine has not (a manager, a way to a registry, the ids that apt needs) is left out aloud: the test prints it and
//! asserts why, and fails if nothing at all could be tried. The registries are allowed by name, so that
//! mirrors of them count; `POSTHOUSE_ALLOW_PRIVATE_HOSTS` may say otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox::doctor::{self, PROCESS_LIMIT};
use sandbox::{Access, Base, Error, Manager, Mount, Packages, Resources, Rights};

use crate::door::{Door, registries};
use crate::host::{Host, Sandbox, eventually, fresh_id};

fn installer() -> Resources {
    Resources { network: Some(registries()), rights: Rights::Install, ..Resources::default() }
}

/// Why a registry cannot be reached from this machine itself; `None` if it can.
pub(crate) fn unreachable(url: &str) -> Option<String> {
    let tried = Command::new("curl").args(["-sSf", "--max-time", "20", "-o", "/dev/null", url]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("curl: {error}")),
    }
}

/// The folder of a Rust toolchain, for a mount: people have theirs at home, where no sandbox looks.
fn toolchain() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    folder.join("bin/cargo").is_file().then_some(folder)
}

async fn has(sandbox: &Sandbox<'_>, program: &str) -> bool {
    sandbox.bash(&format!("command -v {program} >/dev/null && echo yes")).await == "yes"
}

#[tokio::test(flavor = "multi_thread")]
async fn package_managers_work_through_the_exit_with_no_setting() {
    let host = Host::new();
    let _door = Door::open(&host);
    let can_install = host.report().await.can(doctor::PACKAGES);
    let rust = toolchain();
    let mounts = rust.iter().map(|folder| Mount {
        host: folder.clone(),
        inside: "/opt/rust".into(),
        access: Access::ReadOnly,
    });
    let sandbox = host.sandbox(Resources { mounts: mounts.collect(), ..installer() }).await;
    let (mut tried, mut left_out) = (0, Vec::new());

    let cases = [
        (
            "python3",
            "https://pypi.org/simple/six/",
            "pip",
            "pip install -q six==1.16.0 2>&1 && cd /tmp && python3 -c 'import six; print(six.__version__)'",
            "1.16.0",
        ),
        (
            "npm",
            "https://registry.npmjs.org/is-odd",
            "npm",
            "mkdir -p /tmp/n && cd /tmp/n && npm install --silent is-number@7.0.0 2>&1 && node -p 'require(\"is-number\")(5)'",
            "true",
        ),
        (
            "curl",
            "https://pypi.org/simple/six/",
            "curl",
            "curl -sSf https://pypi.org/simple/six/ | grep -c 'six-1.16.0.tar.gz<' | tail -1",
            "1",
        ),
        (
            "apt-get",
            "http://deb.debian.org/debian/dists/stable/InRelease",
            "apt",
            "apt-get -qq update 2>&1 && apt-get -qq install hello >/tmp/apt 2>&1 && hello && apt-get -qq install --reinstall hostname >/tmp/apt 2>&1 || cat /tmp/apt",
            "Hello, world!",
        ),
    ];
    for (program, registry, name, command, expected) in cases {
        let why_not = match () {
            () if !has(&sandbox, program).await => Some(format!("{program} is not on this machine")),
            () if name == "pip"
                && sandbox.bash("python3 -m pip --version || echo none").await.ends_with("none") =>
            {
                Some("pip is not on this machine".to_owned())
            }
            () if name == "apt" && !can_install => Some("apt needs more ids than this user has".to_owned()),
            () => unreachable(registry),
        };
        match why_not {
            Some(why) => left_out.push(format!("{name}: {why}")),
            None => {
                tried += 1;
                assert_eq!(sandbox.bash(command).await, expected, "{name}");
            }
        }
    }
    match (rust, unreachable("https://index.crates.io/config.json")) {
        (Some(_), None) => {
            tried += 1;
            let command = "export PATH=$PATH:/opt/rust/bin; cd /tmp && cargo new -q x 2>&1 && cd x && cargo add -q itoa@1.0.11 2>&1 && \
                echo 'fn main() { println!(\"{}\", itoa::Buffer::new().format(42)); }' > src/main.rs && cargo run -q 2>&1";
            assert_eq!(sandbox.bash(command).await, "42");
        }
        (None, _) => left_out.push("cargo: there is no Rust toolchain on this machine".to_owned()),
        (_, Some(why)) => left_out.push(format!("cargo: {why}")),
    }
    println!("package managers tried: {tried}; left out: {left_out:?}");
    assert!(tried > 0, "no package manager could be tried: {left_out:?}");
    // And nowhere else.
    let elsewhere = sandbox.bash("curl -s -o /dev/null -w '%{http_connect}' https://example.com/").await;
    assert_eq!(elsewhere, "403");
    host.end().await;
}

#[tokio::test]
async fn root_owns_what_the_hosts_root_owns_where_it_may_install() {
    let host = Host::new();
    let can_install = host.report().await.can(doctor::PACKAGES);
    let sandbox = host.sandbox(Resources { rights: Rights::Install, ..Resources::default() }).await;
    let owners = sandbox.bash("stat -c '%u:%g' /usr /usr/bin /usr/bin/env /etc /etc/passwd | sort -u").await;
    let written = sandbox.bash("chmod 700 /usr/bin/env && ln /usr/bin/env /usr/bin/env2 && mv /usr/bin/env2 /usr/bin/env3 && echo x >> /etc/passwd && echo done").await;
    if can_install {
        assert_eq!(owners, "0:0");
        assert_eq!(written, "done");
        let own = sandbox.bash("touch /tmp/a && chown 1000:1000 /tmp/a && stat -c %u /tmp/a").await;
        assert_eq!(own, "1000");
    } else {
        assert_ne!(written, "done");
    }
    let same = std::fs::metadata("/usr/bin/env").unwrap();
    assert_ne!(std::os::unix::fs::MetadataExt::mode(&same) & 0o077, 0, "the host keeps its own");
    host.end().await;
}

#[tokio::test]
async fn what_the_host_keeps_from_everybody_is_kept_from_installers_too() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources { rights: Rights::Install, ..Resources::default() }).await;
    // A private file of the host's own, where one can be put; it is gone however the test ends.
    let secret = Path::new("/usr/lib").join(format!("posthouse-test-{}", std::process::id()));
    let local = Path::new("/usr/local").join(secret.file_name().unwrap());
    let written: Vec<Secret> = [secret, local].into_iter().filter_map(Secret::put).collect();
    // The first sandbox has been made, so the look is over: this is what it found, and the rest is never shown.
    let found = sandbox.bash("find /usr -xdev \\( -type f -o -type d \\) ! -perm -o+r -readable 2>/dev/null; find /usr/local -type f ! -perm -o+r -readable 2>/dev/null; echo end").await;
    assert_eq!(found.lines().filter(|line| !line.contains("posthouse-test-")).collect::<Vec<_>>(), ["end"]);
    let host_two = Host::new();
    let later = host_two.sandbox(Resources { rights: Rights::Install, ..Resources::default() }).await;
    for Secret(path) in &written {
        let read = later.bash(&format!("cat {} 2>&1", path.display())).await;
        assert!(!read.contains("secret"), "{read}");
    }
    drop(written);
    host_two.end().await;
    host.end().await;
}

struct Secret(PathBuf);

impl Secret {
    fn put(path: PathBuf) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&path, "secret").ok()?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).ok()?;
        Some(Self(path))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn capabilities_for_packages_end_at_the_sandbox() {
    let host = Host::new();
    let report = host.report().await;
    let sandbox = host.sandbox(Resources {
        rights: Rights::Install,
        limits: sandbox::Limits { processes: 64, ..sandbox::Limits::default() },
        ..Resources::default()
    });
    let sandbox = sandbox.await;
    let effective =
        sandbox.bash("grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | awk '{print $2}' | sort -u").await;
    let amb = sandbox
        .bash("grep -E '^Cap(Inh|Amb)|^NoNewPrivs' /proc/self/status | awk '{print $2}' | tr '\\n' ' '")
        .await;
    assert_eq!(amb, "0000000000000000 0000000000000000 1");
    if !report.can(doctor::PACKAGES) {
        assert_eq!(effective, "0000000000000000");
        host.end().await;
        return;
    }
    assert_eq!(effective, "00000000000000fb");
    assert!(report.holds(PROCESS_LIMIT));
    let program = r#"
import time
# Becoming others, one process each, does not get around the limit of the whole.
made = 0
try:
    while made < 300:
        if os.fork() == 0:
            os.setgid(1000 + made); os.setuid(1000 + made)
            time.sleep(600)
        made += 1
except OSError as error:
    print("fork", name(error.errno), made < 64)

"#;
    assert_eq!(sandbox.python(program).await, "fork EAGAIN True");
    sandbox.bash("kill -KILL -1 2>/dev/null; true").await;
    let program = r#"
print(attempt(lambda: os.setuid(70000)), attempt(lambda: os.chown("/dev/null", 0, 0)), attempt(lambda: os.chmod("/dev/null", 0o600)))
print(attempt(lambda: os.chroot("/tmp")), attempt(lambda: socket.sethostname("x")), attempt(lambda: os.nice(-5)))
print(attempt(lambda: os.setxattr("/tmp/x", "security.capability", b"\x01\x00\x00\x02" + b"\xff" * 16)))
print(attempt(lambda: open("/proc/sys/kernel/core_pattern", "r+")), attempt(lambda: open("/proc/sys/user/max_user_namespaces", "r+")), attempt(lambda: open("/proc/1/mem", "rb")), attempt(lambda: os.listdir("/proc/1/root")))
print(attempt(lambda: socket.create_server(("127.0.0.1", 80))))
import shutil, subprocess
shutil.copy("/usr/bin/id", "/tmp/id")
os.chmod("/tmp/id", 0o6755)
pid = os.fork()
if pid == 0:
    os.setgid(1000); os.setuid(1000)
    print(subprocess.run(["/tmp/id", "-u"], capture_output=True, text=True).stdout.strip(), attempt(lambda: os.setuid(0)), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"#;
    let printed = sandbox.python(&format!("open('/tmp/x', 'w')\n{program}")).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "EINVAL EPERM EPERM");
    assert!(lines[1].split(' ').all(|word| ["EACCES", "EPERM"].contains(&word)), "{printed}");
    assert_eq!(lines[2], "EPERM");
    assert!(lines[3].split(' ').all(|word| ["EACCES", "EPERM"].contains(&word)), "{printed}");
    assert_eq!(lines[5], "1000 EPERM", "{printed}");
    host.end().await;
}

fn base(packages: Packages) -> Base {
    Base { image: None, packages }
}

fn list(packages: &[&str]) -> Vec<String> {
    packages.iter().map(|package| (*package).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_of_a_base_are_installed_once_and_found_by_every_sandbox_of_it() {
    let host = Host::with_registries(registries());
    let _door = Door::open(&host);
    let can_install = host.report().await.can(doctor::PACKAGES);
    let mut packages = Packages::default();
    let mut expected = Vec::new();
    if let Some(why) = unreachable("https://pypi.org/simple/six/") {
        println!("left out: pip: {why}");
    } else {
        packages.pip = list(&["six==1.16.0"]);
        expected.push(("python3 -c 'import six; print(six.__version__)'", "1.16.0"));
    }
    if let Some(why) = unreachable("https://registry.npmjs.org/semver") {
        println!("left out: npm: {why}");
    } else if Command::new("npm").arg("--version").output().is_ok() {
        packages.npm = list(&["semver@7.6.3"]);
        expected.push(("semver 1.2.3", "1.2.3"));
    }
    if !can_install || unreachable("http://deb.debian.org/debian/dists/stable/InRelease").is_some() {
        println!("left out: apt: not with this user, or not from this machine");
    } else {
        packages.apt = list(&["hello"]);
        expected.push(("hello; dpkg -s hello | grep Status", "Hello, world!\nStatus: install ok installed"));
    }
    assert!(!expected.is_empty(), "no package manager could be tried");
    let resources = Resources { base: base(packages.clone()), ..Resources::default() };
    let id = fresh_id();
    let early = host.provider.provision(&id, 1, &resources).await;
    assert!(matches!(early, Err(Error::Unprepared {})), "{early:?}");

    let (heard, other) = (std::sync::Mutex::new(Vec::new()), host.another());
    let hear = |line: &str| heard.lock().unwrap().push(line.to_owned());
    let base = base(packages);
    let (one, two) = tokio::join!(host.provider.prepare(&base, &hear), other.prepare(&base, &|_| {}));
    one.unwrap();
    two.unwrap();
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    assert!(heard.iter().any(|line| line.contains("installs") || line.contains("waiting")), "{heard:?}");
    let layers: Vec<_> = std::fs::read_dir(host.data().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".lock"))
        .collect();
    assert_eq!(layers.len(), 1, "{layers:?}");

    for _ in 0..2 {
        let sandbox = host.sandbox(resources.clone()).await;
        for (command, expected) in &expected {
            assert_eq!(sandbox.bash(command).await, *expected);
        }
        assert_eq!(
            sandbox.bash("echo x > /usr/local/bin/x && echo y >> /root/y && ls /tmp | wc -l").await,
            "0"
        );
        let mounts = sandbox.bash("cat /proc/self/mountinfo").await;
        assert!(!mounts.contains(host.data().to_str().unwrap()) && !mounts.contains("layers"), "{mounts}");
    }
    assert_eq!(host.provider.list().await.unwrap().len(), 2, "builders are gone");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_cannot_be_installed_is_named_with_the_managers_last_words() {
    let host = Host::with_registries(registries());
    let _door = Door::open(&host);
    let odd = base(Packages { pip: list(&["six", "--index-url=x"]), ..Packages::default() });
    let refused = host.provider.prepare(&odd, &|_| {}).await;
    let Err(Error::Packages { manager: Manager::Pip, package: Some(package), .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(package, "--index-url=x");
    if let Some(why) = unreachable("https://pypi.org/simple/six/") {
        println!("left out: pip: {why}");
        return host.end().await;
    }
    let missing = base(Packages { pip: list(&["six", "posthouse-no-such-package"]), ..Packages::default() });
    let failed = host.provider.prepare(&missing, &|_| {}).await;
    let Err(Error::Packages { manager: Manager::Pip, package, lines }) = failed else { panic!("{failed:?}") };
    assert_eq!(package.as_deref(), Some("posthouse-no-such-package"));
    assert!(lines.iter().any(|line| line.contains("No matching distribution")), "{lines:?}");
    let left = std::fs::read_dir(host.data().join("layers")).unwrap().flatten();
    assert_eq!(left.filter(|entry| entry.path().is_dir()).count(), 0, "nothing half made is kept");
    host.end().await;
}

/// A builder that is at work, of a package that will never come; and the folder of its layer.
async fn begun(host: &Host) -> (tokio::task::JoinHandle<Result<(), Error>>, std::path::PathBuf) {
    let server = host.another();
    let packages = Packages { pip: list(&["posthouse-no-such-package"]), ..Packages::default() };
    let preparing = tokio::spawn(async move { server.prepare(&base(packages), &|_| {}).await });
    let layers = host.data().join("layers");
    let unfinished = || {
        let entries = std::fs::read_dir(&layers).ok()?;
        let names = entries.flatten().map(|entry| entry.path());
        names.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(".new-"))
    };
    eventually("a builder is at work", || unfinished().is_some() && !host.family().is_empty()).await;
    let folder = unfinished().unwrap();
    (preparing, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_an_install_that_was_given_up_is_cleared_away_and_one_at_work_is_not() {
    let host = Host::with_registries(registries());
    host.report().await;
    // Without a door nothing comes, and nothing is refused.
    let (preparing, folder) = begun(&host).await;
    host.provider.tidy().await.unwrap();
    assert!(folder.exists() && !host.family().is_empty(), "somebody is at it");
    preparing.abort();
    assert!(preparing.await.unwrap_err().is_cancelled());
    assert!(folder.exists() && !host.family().is_empty(), "it is left");
    assert_eq!(host.provider.list().await.unwrap(), []);
    host.another().tidy().await.unwrap();
    assert!(!folder.exists());
    eventually("its processes are gone", || host.family().is_empty()).await;
    host.end().await;
}

#[tokio::test]
async fn what_is_half_installed_goes_without_a_supervisor_unless_somebody_is_at_it() {
    let host = Host::new();
    let layers = host.data().join("layers");
    let of = |prefix: &str, letter: &str| layers.join(format!("{prefix}{}", letter.repeat(64)));
    for letter in ["a", "b"] {
        std::fs::create_dir_all(of(".new-", letter).join("u")).unwrap();
        std::fs::write(of(".lock-", letter), "").unwrap();
    }
    std::fs::create_dir(of("", "a")).unwrap();
    let lock = std::fs::File::open(of(".lock-", "b")).unwrap();
    lock.lock().unwrap();
    host.provider.tidy().await.unwrap();
    assert!(!of(".new-", "a").exists() && of("", "a").exists());
    assert!(of(".new-", "b").exists(), "somebody is at it");
    drop(lock);
    host.provider.tidy().await.unwrap();
    assert!(!of(".new-", "b").exists());
    assert!(!host.data().join("supervisor/supervisor.sock").exists(), "none was started for it");
}
