//! A real `git` in a sandbox, through the real proxy, with a real `git http-backend` over TLS at the other end.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use egress::{Guard, Policy, PrivateHosts, Table};
use sandbox::{Equipment, Resources};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::door::{Door, network};
use crate::host::Host;

/// Says on which port it listens, and answers as a web server with `git http-backend` behind it does.
const SERVER: &str = r#"
import http.server, os, ssl, subprocess, sys
root, certificate, key = sys.argv[1:]
class Git(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def body(self):
        if self.headers.get("transfer-encoding") != "chunked": return self.rfile.read(int(self.headers.get("content-length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole
    def do_GET(self):
        path, _, query = self.path.partition("?")
        told = {name: self.headers.get(header, "") for name, header in [("CONTENT_TYPE", "content-type"), ("CONTENT_LENGTH", "content-length"),
            ("HTTP_CONTENT_ENCODING", "content-encoding"), ("GIT_PROTOCOL", "git-protocol")]}
        told |= {"GIT_PROJECT_ROOT": os.path.abspath(root), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command, "PATH_INFO": path,
            "QUERY_STRING": query, "REMOTE_USER": "agent", "REMOTE_ADDR": "127.0.0.1"}
        done = subprocess.run(["git", "http-backend"], input=self.body(), env=os.environ | told, stdout=subprocess.PIPE)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        status = [value for name, value in headers if name == "Status"] or ["200 OK"]
        self.send_response(int(status[0].split()[0]))
        for name, value in headers:
            if name != "Status": self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    do_POST = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Git)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A repository with one file, and a certificate in the server's name.
const PREPARE: &str = r#"
set -e
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com \
    GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
git init -q --bare -b main repositories/one.git
git init -q -b main work && cd work
echo 'from the server' > file && head -c 3000000 /dev/urandom > large
git add . && git commit -qm one && git push -q ../repositories/one.git main && cd ..
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=git.test \
    -addext subjectAltName=DNS:git.test -keyout key -out certificate 2>/dev/null
"#;

#[tokio::test(flavor = "multi_thread")]
async fn git_clones_and_pushes_over_https_through_the_exit_with_no_setting() {
    let missing = ["git", "openssl", "python3"].into_iter().find(|program| !is_here(program));
    if let Some(missing) = missing {
        let words =
            format!("LEFT OUT: git: there is no `{missing}` on this machine; Debian calls it that, too");
        return drop(writeln!(std::io::stderr(), "{words}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let prepared = Command::new("sh").args(["-c", PREPARE]).current_dir(&folder).output().unwrap();
    assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
    let (_server, port) = serve(folder.path()).await;

    let host = Host::new();
    let names = Table::default();
    names.set("git.test", vec![vec!["127.0.0.1".parse().unwrap()]]);
    let private = format!("git.test:{port}").parse::<PrivateHosts>().unwrap();
    let _door = Door::guarded(&host, Guard::new(private, []).with_names(names.names()));
    let policy = Policy::Limited {
        allowed_hosts: vec!["git.test".parse().unwrap()],
        mcp_hosts: vec![],
        allow_package_managers: false,
    };
    let sandbox = host.sandbox(Resources { network: Some(network(&policy)), ..Resources::default() }).await;
    let url = format!("https://git.test:{port}/one.git");
    let trusted = std::fs::read_to_string(folder.path().join("certificate")).unwrap();
    // Whom it does not trust it does not talk to.
    let refused = sandbox.bash(&format!("git clone -q {url} early 2>&1; ls early 2>&1")).await;
    assert!(refused.contains("certificate") && refused.contains("No such file"), "{refused}");

    let equipment = Equipment { trusted: Some(trusted), ..Equipment::default() };
    let trusting = host.sandbox(Resources { network: Some(network(&policy)), ..Resources::default() }).await;
    host.provider.equip(&trusting.id, 1, &equipment).await.unwrap();
    let cloned = format!("git clone -q {url} one 2>&1 && cd one && cat file && stat -c %s large");
    assert_eq!(trusting.bash(&cloned).await, "from the server\n3000000");
    let pushed = "echo 'from the sandbox' > answer && head -c 2000000 /dev/urandom > more && git add . && \
        git -c user.name=a -c user.email=a@example.com commit -qm two && git push -q 2>&1 && echo pushed";
    assert_eq!(trusting.bash(pushed).await, "pushed");
    let shown = Command::new("git")
        .args(["-C", "repositories/one.git", "show", "main:answer"])
        .current_dir(&folder)
        .output();
    assert_eq!(String::from_utf8(shown.unwrap().stdout).unwrap(), "from the sandbox\n");
    let elsewhere = trusting.bash(&format!("git clone -q https://other.test:{port}/one.git 2>&1")).await;
    assert!(elsewhere.contains("403"), "{elsewhere}");
    host.end().await;
}

fn is_here(program: &str) -> bool {
    let looked = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    looked.is_ok_and(|status| status.success())
}

async fn serve(folder: &Path) -> (Child, u16) {
    let mut server = tokio::process::Command::new("python3")
        .args(["-c", SERVER, "repositories", "certificate", "key"])
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // Whoever runs the tests may have no home of their own.
        .env("HOME", folder)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let port = lines.next_line().await.unwrap().expect("it says where it listens").parse().unwrap();
    (server, port)
}
