//! Seeing what it should not: processes, files, the environment, the host's names, other tenants.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use sandbox::doctor::PACKAGES;
use sandbox::{Error, Resources, SandboxId};
use serde_json::json;
use testkit::engine::is_podman;

use crate::host::{Host, call, has_exits, installs, text};

#[tokio::test]
async fn attack_6_proc_shows_its_own_processes_and_little_of_the_machine() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let processes = sandbox.bash("ls /proc | grep -c '^[0-9]'").await;
    assert!(processes.parse::<u32>().unwrap() < 8, "{processes}");
    let first = "import glob\nfor f in ['environ', 'mem', 'maps', 'root', 'cwd', 'exe', 'stack', 'task/1/environ']:\n    p = f'/proc/1/{f}'\n    print(f, attempt(lambda: os.listdir(p) if f in ('root', 'cwd') else (os.readlink(p) if f == 'exe' else open(p).read())))";
    let printed = sandbox.python(first).await;
    assert!(printed.lines().all(|line| line.ends_with("EACCES") || line.ends_with("EPERM")), "{printed}");
    let masked = r#"
for f in ["cmdline", "kallsyms", "kcore", "keys", "key-users", "sysrq-trigger", "timer_list", "kmsg", "config.gz", "partitions", "diskstats", "interrupts", "iomem", "acpi", "bus", "fs", "scsi"]:
    p = "/proc/" + f
    if os.path.isdir(p):
        if os.listdir(p): print(f, "has entries")
    elif os.path.exists(p):
        try:
            if open(p, "rb").read(100): print(f, "can be read")
        except OSError:
            pass
print("end")
"#;
    assert_eq!(sandbox.python(masked).await, "end");
    host.end().await;
}

#[tokio::test]
async fn attack_7_mounts_do_not_name_the_host() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let mounts = sandbox.bash("cat /proc/self/mountinfo /proc/self/mounts /proc/1/mountinfo").await;
    if host.has_containers() {
        // What an engine makes names where the engine keeps its layers and where our door was. All that can be done is to let
        // nothing of the host's be writable.
        let of_the_host =
            |line: &&str| ["ext4", "xfs", "btrfs", "overlay"].iter().any(|kind| line.contains(kind));
        let own = sandbox.bash("cat /proc/self/mountinfo").await;
        let writable =
            own.lines().filter(of_the_host).filter(|line| line.split(' ').nth(5).unwrap().starts_with("rw"));
        assert_eq!(writable.collect::<Vec<_>>(), Vec::<&str>::new());
        return host.end().await;
    }
    let data = host.data().to_str().unwrap();
    for word in [data, "supervisor", "posthouse", "/home", "/dev/vd", "/dev/sd", "/dev/nvme", "ext4", "/root"]
    {
        assert!(!mounts.contains(word), "{word}: {mounts}");
    }
    host.end().await;
}

#[tokio::test]
async fn attack_7_nothing_of_the_hosts_own_files_is_there() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let found = sandbox.bash("ls -A /home /root /srv /media /run /var/log /var/lib /boot /sys 2>/dev/null | grep -v -e ':$' -e '^$' -e lock; echo end").await;
    match host.has_containers() {
        // The agent's own folder, and where the door was, which is no more.
        true => {
            assert_eq!(found, "agent\nposthouse\nend");
            assert_eq!(
                sandbox.bash("ls -A /run/posthouse /home/agent").await,
                "/home/agent:\n\n/run/posthouse:"
            );
        }
        false => {
            // The database of packages is shown to who may install some, and folders are made for its manager.
            let installs = installs() && host.report().await.can(PACKAGES);
            assert_eq!(found, if installs { "apt\ndpkg\napt\nend" } else { "end" });
        }
    }
    let secrets = sandbox.bash("ls /etc/shadow /etc/gshadow /etc/ssh /etc/ssl/private /etc/machine-id /etc/sudoers 2>&1 | grep -vc 'No such file'").await;
    assert_eq!(secrets.lines().next(), Some("0"));
    host.end().await;
}

#[tokio::test]
async fn attack_11_neither_environment_nor_descriptors_come_along() {
    // The test process stands for the server: what it has must not be found inside.
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let names = sandbox
        .bash("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | cut -d= -f1 | sort -u | tr '\\n' ' '")
        .await;
    let known = [
        "HOME", "HOSTNAME", "LANG", "LOGNAME", "OLDPWD", "PATH", "PWD", "SHELL", "SHLVL", "TERM", "USER", "_",
    ];
    let of_an_exit = |name: &str| {
        let name = name.to_ascii_lowercase();
        ["_proxy", "_bundle", "_cert", "_certs", "_cainfo", "_cert_file"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let may = |name: &str| {
        known.contains(&name)
            || (has_exits() && of_an_exit(name))
            // Podman says what it is.
            || (host.has_containers() && is_podman() && name == "container")
    };
    assert!(names.split_whitespace().all(may), "{names}");
    let descriptors = sandbox.python("import fcntl\nopen_ones = []\nfor fd in range(4096):\n    try:\n        fcntl.fcntl(fd, fcntl.F_GETFD)\n        open_ones.append(fd)\n    except OSError:\n        pass\nprint(open_ones)").await;
    assert_eq!(descriptors, "[0, 1, 2]");
    host.end().await;
}

#[tokio::test]
async fn attack_12_there_is_no_way_to_the_cloud_or_anywhere() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    let connect = r#"
def reach(family, kind, address):
    s = socket.socket(family, kind)
    s.settimeout(3)
    return attempt(lambda: s.connect(address))
for a in ["169.254.169.254", "10.0.0.1", "192.168.0.1", "8.8.8.8", "224.0.0.1"]:
    print(a, reach(socket.AF_INET, socket.SOCK_STREAM, (a, 80)), reach(socket.AF_INET, socket.SOCK_DGRAM, (a, 53)))
for a in ["fd00:ec2::254", "2001:4860:4860::8888", "fe80::1"]:
    print(a, reach(socket.AF_INET6, socket.SOCK_STREAM, (a, 80)), reach(socket.AF_INET6, socket.SOCK_DGRAM, (a, 53)))
print("interfaces", [n for _, n in socket.if_nameindex()])
"#;
    let printed = sandbox.python(connect).await;
    for line in printed.lines() {
        let unreachable = ["ENETUNREACH", "EADDRNOTAVAIL", "EINVAL", "EHOSTUNREACH"];
        let fails = line.split(' ').skip(1).all(|word| unreachable.contains(&word));
        assert!(fails || line == "interfaces ['lo']", "{printed}");
    }
    host.end().await;
}

#[tokio::test]
async fn attack_13_the_hosts_own_ports_are_not_its_own() {
    let host = Host::new();
    let (four, six) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0"));
    let sandbox = host.sandbox(Resources::default()).await;
    let port = four.local_addr().unwrap().port();
    let connect = |addresses: &str, family: &str, port: u16| {
        format!(
            "for a in {addresses}:\n    s = socket.socket({family})\n    s.settimeout(3)\n    print(a, attempt(lambda: s.connect((a, {port}))))"
        )
    };
    let printed = sandbox
        .python(&connect(
            r#"["127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0177.0.0.1", "127.0.0.53"]"#,
            "socket.AF_INET",
            port,
        ))
        .await;
    assert!(
        printed.lines().count() == 7 && printed.lines().all(|line| line.ends_with("ECONNREFUSED")),
        "{printed}"
    );
    let port = six.map_or(port, |six| six.local_addr().unwrap().port());
    let printed =
        sandbox.python(&connect(r#"["::1", "::", "::ffff:127.0.0.1"]"#, "socket.AF_INET6", port)).await;
    assert!(!printed.contains("ok"), "{printed}");
    // Its own loopback works.
    let own = "s = socket.create_server(('127.0.0.1', 0))\nprint(attempt(lambda: socket.create_connection(s.getsockname())))";
    assert_eq!(sandbox.python(own).await, "ok");
    host.end().await;
}

#[tokio::test]
async fn attack_15_abstract_sockets_of_the_host_are_out_of_reach() {
    let host = Host::new();
    let name = format!("posthouse-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let sandbox = host.sandbox(Resources::default()).await;
    let connect =
        format!("s = socket.socket(socket.AF_UNIX)\nprint(attempt(lambda: s.connect('\\0{name}')))");
    let refused = sandbox.python(&connect).await;
    assert!(["ECONNREFUSED", "EPERM"].contains(&refused.as_str()), "{refused}");
    host.end().await;
}

#[tokio::test]
async fn attack_16_no_socket_lies_in_its_file_system() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    assert_eq!(sandbox.bash("find / -xdev -type s 2>/dev/null; find /usr /opt /etc -type s 2>/dev/null; ls /var/run 2>/dev/null; echo end").await, "end");
    host.end().await;
}

#[tokio::test]
async fn attack_10_the_file_tools_do_not_follow_a_link_out() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("ln -s /etc/passwd absolute; ln -s ../../etc/passwd relative; ln -s /proc/self/root/etc/passwd magic; ln -s /etc folder; mkfifo pipe; ln -s /dev/zero endless").await;
    for path in [
        "absolute",
        "relative",
        "magic",
        "folder/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/1/environ",
        "../etc/passwd",
        "pipe",
        "endless",
        "/dev/zero",
    ] {
        let output = sandbox.execute("read", json!({"file_path": path})).await;
        assert!(output.is_error, "{path}: {}", text(&output));
        let output = sandbox.execute("write", json!({"file_path": path, "content": "x"})).await;
        assert!(output.is_error, "{path}: {}", text(&output));
    }
    assert!(sandbox.bash("head -c 4 /etc/passwd").await.starts_with("root"));
    host.end().await;
}

#[tokio::test]
async fn attack_34_an_id_is_an_id_and_nothing_else() {
    let host = Host::new();
    let sandbox = host.sandbox(Resources::default()).await;
    for odd in ["", "../x", "a/b", ".", "..", "a b", "a\0", "a\n", "%2e%2e", &"x".repeat(200)] {
        assert_eq!(SandboxId::parse(odd), None, "{odd:?}");
    }
    let near = format!("{}x", sandbox.id);
    for guess in [near.as_str(), "0", "1", "TEST-0"] {
        let id = SandboxId::parse(guess).unwrap();
        let found = host.provider.execute(call(&id, "bash", json!({"command": "echo hi"}))).await;
        assert!(matches!(found, Err(Error::Gone { .. })), "{guess}: {found:?}");
    }
    host.end().await;
}
