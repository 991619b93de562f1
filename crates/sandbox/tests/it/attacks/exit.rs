//! Turning to the one way out: reaching what it is not for, another's, taking its place, taking it away.

use std::fs;
use std::net::TcpListener;

use egress::{Guard, Policy, PrivateHosts};
use sandbox::{EXIT_PORT, Resources};

use crate::docker::is_walled_in;
use crate::door::{Door, Site, network};
use crate::host::{Host, Sandbox};

/// How programs ask through the exit: the status that they get, or what became of the connection.
const ASK: &str = r#"
EXIT = ("127.0.0.1", 3128)
def status(s, data):
    s.settimeout(30)
    try:
        s.sendall(data)
        got = b""
        while b"\r\n" not in got:
            more = s.recv(4096)
            if not more: break
            got += more
    except OSError as error:
        return name(error.errno) if error.errno else "timeout"
    words = got.split(b" ")
    return words[1].decode() if got.startswith(b"HTTP/1.1 ") else "closed"
def ask(data):
    with socket.create_connection(EXIT) as s: return status(s, data)
def get(authority):
    return ask(f"GET http://{authority}/ HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
def connect(authority):
    return ask(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
"#;

fn may_reach(policy: &Policy) -> Resources {
    Resources { network: Some(network(policy)), ..Resources::default() }
}

/// A program that asks for the site last.
async fn and_asks(sandbox: &Sandbox<'_>, program: &str, site: &Site) -> String {
    sandbox.python(&format!("{ASK}\n{program}\nprint(get('localhost:{}'))", site.port)).await
}

/// A kernel of a container's own gives no socket away, so there is no exit.
fn has_no_exits(host: &Host) -> bool {
    host.has_containers() && is_walled_in()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_nothing_private_is_reached_by_the_exit_either() {
    let host = Host::new();
    if has_no_exits(&host) {
        return;
    }
    let (four, six) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").ok());
    let listeners: Vec<TcpListener> = [Some(four), six].into_iter().flatten().collect();
    let ports: Vec<u16> = listeners.iter().map(|one| one.local_addr().unwrap().port()).collect();
    // All that an environment can allow, on every port that there is something to find.
    let _door = Door::guarded(
        &host,
        Guard::new(PrivateHosts::default(), ports.iter().copied().chain([53, EXIT_PORT])),
    );
    let sandbox = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let program = format!(
        r#"{ASK}
hosts = ["127.0.0.1", "localhost", "localhost.", "LOCALHOST", "a.localhost", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
    "127.0.0.53", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200", "192.0.0.192",
    "10.0.0.1", "172.17.0.1", "192.168.0.1", "[fe80::1]", "[fe80::1%25lo]", "224.0.0.1", "255.255.255.255", "user@localhost"]
for host in hosts:
    for port in {ports:?} + [80, 443, 3128]:
        seen = {{get(f"{{host}}:{{port}}"), connect(f"{{host}}:{{port}}")}}
        if not seen <= {{"400", "403"}}: print(host, port, seen)
print("done")"#
    );
    assert_eq!(sandbox.python(&program).await, "done");
    for listener in listeners {
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody came");
    }
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_the_exit_of_another_sandbox_cannot_be_used() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let free = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let shut = host.sandbox(may_reach(&Policy::NOTHING)).await;
    assert_eq!(and_asks(&free, "", &site).await, "200");
    // By other addresses, and from them; whatever it calls itself, it is judged as who it is.
    let program = r#"
for address in ["127.0.0.2", "127.255.255.254", "0.0.0.0"]:
    s = socket.socket(); s.settimeout(5)
    print(attempt(lambda: s.connect((address, 3128))))
s = socket.socket(socket.AF_INET6)
print(attempt(lambda: s.connect(("::1", 3128))) in ("ECONNREFUSED", "EADDRNOTAVAIL"))
for address in ["127.0.0.1", "127.0.0.2", "127.9.9.9"]:
    with socket.create_connection(EXIT, source_address=(address, 0)) as s:
        print(status(s, f"GET http://localhost:PORT/ HTTP/1.1\r\nhost: localhost:PORT\r\nx-posthouse-egress: ok\r\nforwarded: for=OTHER\r\nproxy-authorization: Basic T1RIRVI6\r\n\r\n".encode()))
"#;
    let program = program.replace("PORT", &site.port.to_string()).replace("OTHER", free.id.as_str());
    // 0.0.0.0 is its own loopback: its own exit.
    let expected = "ECONNREFUSED\nECONNREFUSED\nok\nTrue\n403\n403\n403\n403";
    assert_eq!(and_asks(&shut, &program, &site).await, expected);
    assert_eq!(site.asked(), 1);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_a_connection_by_the_exit_cannot_be_handed_to_another_sandbox() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let free = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let shut = host.sandbox(may_reach(&Policy::NOTHING)).await;
    // One that gives away a connection of its own to whoever comes, by either kind of name.
    let giver = r#"
import threading
def give(address):
    server = socket.socket(socket.AF_UNIX); server.bind(address); server.listen()
    print("ready\n", end="", flush=True)
    while True:
        to, _ = server.accept()
        with socket.create_connection(EXIT) as s: socket.send_fds(to, [b"x"], [s.fileno()])
        to.close()
threading.Thread(target=give, args=("\0given",)).start()
give("/tmp/given")
"#;
    let prelude = "import socket\nEXIT = ('127.0.0.1', 3128)";
    let start = format!(
        "cat > /tmp/giver.py <<'END'\n{prelude}\n{giver}\nEND\n(setsid python3 /tmp/giver.py > /tmp/ready 2>&1 &)\n\
         while [ \"$(grep -c ready /tmp/ready 2>/dev/null)\" != 2 ]; do sleep 0.02; done; echo given"
    );
    assert_eq!(free.bash(&start).await, "given");
    let take = r#"
def take(address):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(address)
        _, descriptors, _, _ = socket.recv_fds(s, 1, 1)
    with socket.socket(fileno=descriptors[0]) as s:
        return status(s, b"GET http://localhost:PORT/ HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n")
for address in ["\0given", "/tmp/given"]:
    try: print(take(address))
    except OSError as error: print(name(error.errno))
"#;
    let take = take.replace("PORT", &site.port.to_string());
    assert_eq!(and_asks(&free, &take, &site).await, "200\n200\n200", "inside, it works");
    assert_eq!(and_asks(&shut, &take, &site).await, "ECONNREFUSED\nENOENT\n403");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_13_nobody_inside_takes_the_place_of_the_exit() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let sandbox = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    // Next to it there is room: whoever listens there hears only this sandbox's own programs.
    let program = r#"
held = []
def listen(family, address, *options):
    s = socket.socket(family); held.append(s)
    for option in options: s.setsockopt(socket.SOL_SOCKET, option, 1)
    s.bind((address, 3128)); s.listen()
ADDRESS, PORT = socket.SO_REUSEADDR, socket.SO_REUSEPORT
for options in [(), (ADDRESS,), (PORT,), (ADDRESS, PORT)]:
    for family, address in [(2, "127.0.0.1"), (2, "0.0.0.0"), (10, "::"), (10, "::ffff:127.0.0.1")]:
        result = attempt(lambda: listen(family, address, *options))
        if result != "EADDRINUSE": print(family, address, options, result)
print(attempt(lambda: listen(2, "127.0.0.2", ADDRESS, PORT)), attempt(lambda: listen(10, "::1", ADDRESS, PORT)) in ("ok", "EADDRNOTAVAIL"))
for _ in range(20):
    if get("localhost:SITE") != "200": print("taken")
"#;
    let program = program.replace("SITE", &site.port.to_string());
    assert_eq!(and_asks(&sandbox, &program, &site).await, "ok True\n200");
    assert_eq!(site.asked(), 21);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_no_process_inside_holds_the_exit() {
    let host = Host::new();
    // Only root can look at what the processes of sandboxes hold.
    if has_no_exits(&host) || !rustix::process::geteuid().is_root() {
        return;
    }
    let sandbox = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    assert_eq!(sandbox.bash("(sleep 600 &) ; echo more than one").await, "more than one");
    let family = host.family();
    let local = format!("0100007F:{EXIT_PORT:04X}");
    let mut looked_at = 0;
    for pid in family.iter().map(|pid| pid.as_raw_nonzero()) {
        let Ok(table) = fs::read_to_string(format!("/proc/{pid}/net/tcp")) else { continue };
        let listening = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[1], words[3]) == (local.as_str(), "0A")
        };
        let Some(line) = table.lines().skip(1).find(listening) else { continue };
        let socket = format!("socket:[{}]", line.split_whitespace().nth(9).unwrap());
        let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let held = held.filter_map(|entry| fs::read_link(entry.path()).ok());
        assert!(held.into_iter().all(|held| held.to_str() != Some(&socket)), "{pid} holds it");
        looked_at += 1;
    }
    assert!(looked_at >= 2, "{family:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_the_exit_cannot_be_closed_from_inside() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let sandbox = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let program = r#"
import fcntl, struct
# Its own connections, in every way.
for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
    s = socket.create_connection(EXIT); s.shutdown(how); s.close()
s = socket.create_connection(EXIT)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); s.close()
s = socket.create_connection(EXIT)
libc.connect(s.fileno(), struct.pack("=H14x", 0), 16); s.close()
# The interface, its address, its routes, and every socket on it.
def netlink(kind, flags, body):
    s = socket.socket(16, 3, 0); s.bind((0, 0))
    s.send(struct.pack("=IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
    reply = s.recv(65536)
    error = -struct.unpack("=i", reply[16:20])[0] if struct.unpack("=H", reply[4:6])[0] == 2 else 0
    return name(error) if error else "ok"
link = struct.pack("=BBHiII", 0, 0, 0, 1, 0, 1)
address = struct.pack("=BBBBI", 2, 8, 0, 254, 1) + struct.pack("=HH4s", 8, 2, bytes([127, 0, 0, 1]))
other = struct.pack("=BBBBI", 2, 32, 0, 0, 1) + struct.pack("=HH4s", 8, 2, bytes([10, 9, 9, 9]))
route = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 253, 1, 0) + struct.pack("=HHI", 8, 4, 1)
new = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH", 16, 18) + struct.pack("=HH8s", 10, 1, b"dummy\0")
print(netlink(16, 0, link), netlink(17, 0, link), netlink(16, 0x600, new[:-2]))
print(netlink(21, 0, address), netlink(20, 0x600, other), netlink(24, 0x600, route))
s = socket.socket()
print(attempt(lambda: fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0))), attempt(lambda: fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8x", b"lo", 2, 0, bytes([10, 0, 0, 1])))))
print(attempt(lambda: socket.socket(16, 3, 4)), attempt(lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)), attempt(lambda: s.setsockopt(socket.SOL_IP, 19, 1)))
"#;
    let printed = and_asks(&sandbox, program, &site).await;
    let expected = "EPERM EPERM EPERM\nEPERM EPERM EPERM\nEPERM EPERM\nEPERM EPERM EPERM\n200";
    assert_eq!(printed, expected);
    let _ = sandbox.try_bash("kill -KILL -1").await;
    assert_eq!(and_asks(&sandbox, "", &site).await, "200");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_what_is_no_request_reaches_nobody_and_leaves_the_exit_open() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let sandbox = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let program = r#"
site = b"localhost:SITE"
hello = bytes.fromhex("16030100310100002d0303") + bytes(32) + bytes.fromhex("0000041301c02f0100000000")
for words in [
    bytes(100), b"\xff" * 5000, b"SSH-2.0-x\r\n", hello, b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03\x09localhost\x00\x50",
    b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO x\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET http://" + site + b"/\n\n", b"GET http://" + site + b"/ HTTP/1.1\nhost: x\n\n", b"GET http://" + site + b"/ HTTP/0.9\r\n\r\n",
    b"GET ftp://" + site + b"/ HTTP/1.1\r\n\r\n", b"GET //" + site + b"/ HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"CONNECT /" + site + b" HTTP/1.1\r\n\r\n", b"A" * 100000, b"GET http://" + site + b"/ HTTP/1.1\r\n" + b"a: b\r\n" * 20000,
    b"GET http://" + site + b"/ HTTP/1.1\r\nhost: " + site + b"\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    b"",
]:
    with socket.create_connection(EXIT) as s:
        s.settimeout(30)
        try:
            s.sendall(words)
            s.shutdown(socket.SHUT_WR)
        except OSError: pass
        result = status(s, b"") if words else "closed"
    if result not in ("400", "403", "405", "431", "501", "505", "closed", "ECONNRESET", "EPIPE"): print(words[:60], result)
"#;
    let program = program.replace("SITE", &site.port.to_string());
    assert_eq!(and_asks(&sandbox, &program, &site).await, "200");
    assert_eq!(site.asked(), 1);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_32_a_sandbox_that_fills_its_exit_fills_no_other() {
    let (host, site) = (Host::new(), Site::start().await);
    if has_no_exits(&host) {
        return;
    }
    let _door = Door::guarded(&host, site.allowed());
    let greedy = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    let other = host.sandbox(may_reach(&Policy::Unrestricted {})).await;
    // More than are served at once; the rest waits in its own queue, and all are held until the other has been served.
    let fill = "import os, socket, time\nheld = []\n\
        for _ in range(400):\n    s = socket.socket(); s.setblocking(False); s.connect_ex(('127.0.0.1', 3128)); held.append(s)\n\
        open('/tmp/full', 'w')\nwhile not os.path.exists('/tmp/enough'): time.sleep(0.02)\n\
        for s in held: s.close()\nopen('/tmp/empty', 'w')";
    let until = |name: &str| format!("while ! test -e /tmp/{name}; do sleep 0.02; done");
    let start = format!("(setsid python3 -c \"{fill}\" > /dev/null 2>&1 &); {}", until("full"));
    assert_eq!(greedy.bash(&start).await, "(no output)");
    assert_eq!(and_asks(&other, "", &site).await, "200");
    assert_eq!(greedy.bash(&format!("touch /tmp/enough; {}", until("empty"))).await, "(no output)");
    assert_eq!(and_asks(&greedy, "", &site).await, "200");
    host.end().await;
}
