//! What the log says, and what it never says.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::common::{LOOPBACK, Origin, Setup, limited, table};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn each_decision_is_one_line_without_path_header_or_content() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(lines.clone())
        .finish();
    // For the whole process: which lines are wanted is cached for all threads. The other tests' lines have another sandbox.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut origin =
        Origin::start("\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX: secret\r\n\r\nsecret").await;
    let port = origin.port;
    let way = Setup {
        sandbox: "sbx_log",
        policy: limited(&["web.test", "in.test"]),
        private: &format!("web.test:{port}"),
        table: table(&[("web.test", LOOPBACK), ("in.test", "10.9.8.7".parse().unwrap())]),
        ..Setup::default()
    }
    .start();
    way.ask(format!("GET http://web.test:{port}/secret?secret HTTP/1.1\r\nX: secret\r\n\r\n")).await;
    origin.seen().await;
    way.ask("SECRET http://in.test/secret HTTP/1.1\r\n\r\n").await;
    way.ask("GET /secret HTTP/1.1\r\nsecret: secret\r\n\r\n").await;
    way.ask("GET http://secret@in.test/ HTTP/1.1\r\n\r\n").await;
    let bytes = lines.0.lock().unwrap().clone();
    let text = String::from_utf8(bytes).unwrap();
    let who = "sandbox.id=sbx_log session.id=\"sesn_test\"";
    let ours: Vec<&str> = text.lines().filter(|line| line.contains(who)).collect();
    let expected = [
        format!(
            "DEBUG egress: a request out of a sandbox was allowed {who} method=\"GET\" host=web.test port={port} \
             verdict=\"allowed\" rule=allowed_hosts:web.test address=127.0.0.1:{port}"
        ),
        format!(
            "DEBUG egress: a connection out of a sandbox is over {who} method=\"GET\" host=web.test port={port} \
             address=127.0.0.1:{port} bytes_up="
        ),
        format!(
            " INFO egress: a request out of a sandbox was not served {who} method=\"other\" host=in.test port=80 \
             verdict=\"denied\" rule=\"address\" status=403 address=10.9.8.7:80"
        ),
        format!(
            " INFO egress: a request out of a sandbox was not served {who} method=\"GET\" verdict=\"denied\" \
             rule=\"malformed\" status=400"
        ),
        format!(
            " INFO egress: a request out of a sandbox was not served {who} method=\"GET\" verdict=\"denied\" \
             rule=\"malformed\" status=400"
        ),
    ];
    assert_eq!(ours.len(), expected.len(), "{text}");
    for (line, expected) in ours.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    assert!(ours[1].contains(" bytes_down=") && ours[1].contains(" duration_ms="), "{}", ours[1]);
    assert!(ours.iter().all(|line| !line.to_lowercase().contains("secret")), "{text}");
}
