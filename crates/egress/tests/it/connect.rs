//! Tunnels.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use egress::{Limits, Policy};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use crate::common::{LOOPBACK, Setup, Way, limited, read_all, table};

/// A TLS server that sends back what it gets, in capitals, until the client has finished; and a client that trusts it.
struct Echo {
    port: u16,
    connector: TlsConnector,
    _serving: AbortOnDropHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let names = ["web.test", "other.test", "127.0.0.1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut bytes = Vec::new();
                    let _ = stream.read_to_end(&mut bytes).await;
                    bytes.make_ascii_uppercase();
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self {
            port,
            connector: TlsConnector::from(Arc::new(client)),
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// Asks for `name` by TLS through a tunnel to `host`: what the server says.
    async fn ask(&self, way: &Way, host: &str, name: &str) -> Result<String, String> {
        let stream = way.tunnel(&format!("{host}:{}", self.port)).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = self.connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        tls.write_all(b"hello").await.unwrap();
        // Half-closed: the server answers only once it has seen the end.
        tls.shutdown().await.unwrap();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
        Ok(answer)
    }

    fn way(&self, policy: Policy) -> Way {
        let port = self.port;
        Setup {
            policy,
            private: &format!("web.test:{port} other.test:{port} 127.0.0.1:{port}"),
            table: table(&[("web.test", LOOPBACK), ("other.test", LOOPBACK)]),
            tls_ports: vec![port],
            limits: Limits { hello_time_max: Duration::from_millis(300), ..Limits::default() },
            ..Setup::default()
        }
        .start()
    }
}

#[tokio::test]
async fn tls_to_an_allowed_host_works_and_half_closes() {
    let echo = Echo::start().await;
    for policy in [limited(&["web.test"]), Policy::Unrestricted {}] {
        let way = echo.way(policy);
        assert_eq!(echo.ask(&way, "web.test", "web.test").await.unwrap(), "HELLO");
        assert_eq!(echo.ask(&way, "WEB.test.", "web.test").await.unwrap(), "HELLO");
    }
}

#[tokio::test]
async fn tls_must_ask_for_the_host_of_the_connect() {
    let echo = Echo::start().await;
    let by_name = limited(&["web.test"]);
    let by_address = limited(&["127.0.0.1", "web.test"]);
    let free = Policy::Unrestricted {};
    let denied = Err("AccessDenied");
    let cases = [
        (&by_name, "web.test", "other.test", denied),
        (&free, "web.test", "other.test", denied),
        // A client sends no name for an address.
        (&by_name, "web.test", "127.0.0.1", denied),
        (&free, "web.test", "127.0.0.1", Ok("HELLO")),
        (&by_address, "127.0.0.1", "127.0.0.1", Ok("HELLO")),
        (&by_address, "127.0.0.1", "web.test", Ok("HELLO")),
        (&by_address, "127.0.0.1", "other.test", denied),
    ];
    for (policy, host, name, expected) in cases {
        let way = echo.way(policy.clone());
        let answer = echo.ask(&way, host, name).await;
        match expected {
            Ok(text) => assert_eq!(answer.as_deref(), Ok(text), "{host} {name}"),
            Err(text) => {
                assert!(answer.as_ref().is_err_and(|error| error.contains(text)), "{host} {name}: {answer:?}")
            }
        }
    }
}

/// A ClientHello as rustls makes it, with an extension of ours put in front, cut into records of this many bytes.
fn client_hello(name: &str, extra_extension: &[u8], record_bytes: usize) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut record = Vec::new();
    connection.write_tls(&mut record).unwrap();
    let mut message = record.split_off(5);
    // Type, length (3), version (2), random (32), session id, cipher suites, compression methods, extensions.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(message[at]);
    at += 2 + usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    at += 1 + usize::from(message[at]);
    let length = u16::from_be_bytes([message[at], message[at + 1]]) + extra_extension.len() as u16;
    message[at..at + 2].copy_from_slice(&length.to_be_bytes());
    message.splice(at + 2..at + 2, extra_extension.iter().copied());
    let length = (message.len() as u32 - 4).to_be_bytes();
    message[1..4].copy_from_slice(&length[1..]);
    let records = message.chunks(record_bytes).flat_map(|part| {
        let mut record = vec![22, 3, 1];
        record.extend((part.len() as u16).to_be_bytes());
        record.extend(part);
        record
    });
    records.collect()
}

/// A far side that counts what arrives: what it got by the time the near side was done.
async fn arrives(policy: Policy, host: &str, bytes: &[u8]) -> Vec<u8> {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Setup {
        policy,
        private: &format!("web.test:{port} 127.0.0.1:{port}"),
        table: table(&[("web.test", LOOPBACK)]),
        tls_ports: vec![port],
        limits: Limits { hello_time_max: Duration::from_millis(300), ..Limits::default() },
        ..Setup::default()
    }
    .start();
    let far = tokio::spawn(async move {
        let (mut far, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let _ = far.read_to_end(&mut bytes).await;
        bytes
    });
    let mut near = way.tunnel(&format!("{host}:{port}")).await.unwrap();
    // A closed tunnel may refuse the rest.
    for part in bytes.chunks(1_000) {
        let _ = near.write_all(part).await;
    }
    let _ = near.shutdown().await;
    read_all(&mut near).await;
    far.await.unwrap()
}

#[tokio::test]
async fn what_could_hide_where_it_goes_does_not_pass_in_limited_mode() {
    // ECH: an outer one, the ciphers, a configuration's id, no key, four bytes of what may be noise. And an extension
    // that nobody knows.
    let ech = [0xfe, 0x0d, 0, 14, 0, 0, 1, 0, 1, 7, 0, 0, 0, 4, 1, 2, 3, 4];
    let unknown = [0xfa, 0xce, 0, 1, 7];
    let limit = || limited(&["web.test", "127.0.0.1"]);
    let free = || Policy::Unrestricted {};
    let plain = client_hello("web.test", &unknown, 16_384);
    let cut = client_hello("web.test", &unknown, 50);
    let hidden = client_hello("web.test", &ech, 16_384);
    let hidden_and_cut = client_hello("web.test", &ech, 50);
    let endless = [22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff].into_iter().chain([7; 40_000]).collect::<Vec<u8>>();
    let cases: [(&str, Policy, &[u8], bool); 13] = [
        ("plain", limit(), &plain, true),
        ("cut", limit(), &cut, true),
        ("hidden", limit(), &hidden, false),
        ("hidden and cut", limit(), &hidden_and_cut, false),
        ("hidden", free(), &hidden, true),
        ("http", limit(), b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", false),
        ("http", free(), b"GET / HTTP/1.1\r\n\r\n", true),
        ("ssh", limit(), b"SSH-2.0-x\r\n", false),
        ("part of a hello", limit(), &plain[..50], false),
        ("part of a hello", free(), &plain[..50], true),
        ("nothing", limit(), b"", false),
        ("an endless hello", limit(), &endless, false),
        ("an alert", limit(), &[21, 3, 3, 0, 2, 2, 40], false),
    ];
    for (name, policy, bytes, passes) in cases {
        let is_limited = policy != free();
        for host in ["web.test", "127.0.0.1"] {
            let arrived = arrives(policy.clone(), host, bytes).await;
            let expected = if passes { bytes } else { b"" };
            assert!(
                arrived == expected,
                "{name}, limited: {is_limited}, {host}: {} bytes arrived",
                arrived.len()
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_begin_is_cut_off_in_limited_mode_and_let_through_otherwise() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (policy, expected) in [(limited(&["web.test"]), ""), (Policy::Unrestricted {}, "220 first")] {
        let way = Setup {
            policy,
            private: &format!("web.test:{port}"),
            table: table(&[("web.test", LOOPBACK)]),
            tls_ports: vec![port],
            limits: Limits { hello_time_max: Duration::from_millis(100), ..Limits::default() },
            ..Setup::default()
        }
        .start();
        let mut near = way.tunnel(&format!("web.test:{port}")).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let _ = far.write_all(b"220 first").await;
        drop(far);
        assert_eq!(read_all(&mut near).await, expected);
    }
}

#[tokio::test]
async fn a_connect_that_is_refused_says_why_in_its_status_line() {
    let way = Setup {
        policy: limited(&["web.test", "private.test", "nowhere.test"]),
        table: table(&[
            ("web.test", "8.8.8.8".parse().unwrap()),
            ("private.test", IpAddr::from([192, 168, 1, 1])),
        ]),
        ..Setup::default()
    }
    .start();
    let cases = [
        ("other.test:443", "403 egress: other.test is not among the hosts that this environment may reach"),
        ("web.test:22", "403 egress: port 22 of web.test is not open"),
        ("web.test:80", "403 egress: a CONNECT to port 80 of web.test would hide which host is asked for"),
        ("private.test:443", "403 egress: private.test leads to a private address"),
        ("[::1]:443", "403 egress: [::1] is not among the hosts that this environment may reach"),
        (
            "[::ffff:7f00:1]:443",
            "403 egress: 127.0.0.1 is not among the hosts that this environment may reach",
        ),
        (
            "169.254.169.254:80",
            "403 egress: 169.254.169.254 is not among the hosts that this environment may reach",
        ),
        ("nowhere.test:443", "502 egress: the name nowhere.test cannot be resolved"),
    ];
    for (target, expected) in cases {
        let answer = way.tunnel(target).await.expect_err(target);
        assert_eq!(answer.lines().next().unwrap(), format!("HTTP/1.1 {expected}"), "{target}");
        assert!(answer.contains("\r\nx-posthouse-egress: "), "{answer}");
    }
}

#[tokio::test]
async fn other_ports_that_an_operator_opened_carry_anything_both_ways() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Setup {
        policy: limited(&["db.test"]),
        private: &format!("db.test:{port}"),
        table: table(&[("db.test", LOOPBACK)]),
        ..Setup::default()
    }
    .start();
    let mut near = way.connect().await;
    // The first bytes come right behind the CONNECT.
    let head = format!("CONNECT db.test:{port} HTTP/1.1\r\nHost: x\r\n\r\nearly");
    near.write_all(head.as_bytes()).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    far.write_all(b"server first").await.unwrap();
    let mut early = [0; 5];
    far.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    near.write_all(b" and late").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await, " and late");
    far.write_all(b", server last").await.unwrap();
    drop(far);
    let answer = read_all(&mut near).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nserver first, server last"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_is_closed() {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Setup {
        private: &format!("127.0.0.1:{port}"),
        limits: Limits { idle_time_max: Duration::from_millis(100), ..Limits::default() },
        ..Setup::default()
    }
    .start();
    let mut near: TcpStream = way.tunnel(&format!("127.0.0.1:{port}")).await.unwrap();
    let (mut far, _) = listener.accept().await.unwrap();
    assert_eq!(read_all(&mut near).await, "");
    assert_eq!(read_all(&mut far).await, "");
}
