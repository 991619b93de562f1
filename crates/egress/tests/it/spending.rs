//! Secrets that are spent on the way out: what the host gets, and what it does not.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use egress::{Authority, Body, Edge, Host, Limits, Policy, Replacement, Secret, Spent, Unavailable};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use crate::common::{LOOPBACK, Setup, Way, limited, table};

const PLACEHOLDER: &str = "phsecret_0123456789abcdef";
const SECRET: &str = "the-real-one";

/// What one sandbox may spend: one credential, to one host.
#[derive(Debug)]
struct Purse {
    host: &'static str,
    in_headers: bool,
    in_body: bool,
    authority: Arc<Authority>,
    /// What the vault has by now; `None` while it is sealed.
    secret: Mutex<Option<Vec<String>>>,
    spent: Mutex<Vec<(String, String, Spent)>>,
}

struct Word(String);

impl Secret for Word {
    fn write_to(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.0.as_bytes());
    }
}

#[async_trait]
impl Edge for Purse {
    async fn replacements(&self, host: &Host) -> Result<Vec<Replacement>, Unavailable> {
        let kept = self.secret.lock().unwrap().clone();
        let Some(kept) = kept else { return Err(Unavailable("the vault is sealed".to_owned())) };
        let replacement = |secret| Replacement {
            credential: "vcrd_one".to_owned(),
            placeholder: PLACEHOLDER.to_owned(),
            secret: Arc::new(Word(secret)),
            in_headers: self.in_headers,
            in_body: self.in_body,
        };
        Ok(kept.into_iter().filter(|_| host.to_string() == self.host).map(replacement).collect())
    }

    async fn authority(&self) -> Result<Arc<Authority>, Unavailable> {
        Ok(Arc::clone(&self.authority))
    }

    fn spent(&self, host: &Host, credential: &str, outcome: Spent) {
        self.spent.lock().unwrap().push((host.to_string(), credential.to_owned(), outcome));
    }

    async fn local(&self, request: Request<Body>) -> Result<Response<Body>, Request<Body>> {
        if request.uri().path() != "/git/hello" {
            return Err(request);
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Ok(Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync()))
    }
}

fn purse(host: &'static str, in_headers: bool, in_body: bool) -> Arc<Purse> {
    let authority = Arc::new(Authority::from_seed("sbx_test", &[7; 32]).unwrap());
    let secret = Mutex::new(Some(vec![SECRET.to_owned()]));
    Arc::new(Purse { host, in_headers, in_body, authority, secret, spent: Mutex::default() })
}

/// A web server behind TLS that answers with what it was sent.
struct Mirror {
    port: u16,
    certificate: CertificateDer<'static>,
    _serving: AbortOnDropHandle<()>,
}

impl Mirror {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["web.test", "other.test"].map(str::to_owned)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), b"private".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(mirror);
                    let _ = if is_http2 {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await
                    } else {
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades()
                            .await
                    };
                });
            }
        });
        let certificate = made.cert.der().clone();
        Self { port, certificate, _serving: AbortOnDropHandle::new(serving) }
    }

    fn way(&self, policy: Policy, purse: &Arc<Purse>) -> Way {
        self.way_within(policy, purse, Limits { hello_time_max: Duration::from_secs(5), ..Limits::default() })
    }

    fn way_within(&self, policy: Policy, purse: &Arc<Purse>, limits: Limits) -> Way {
        let port = self.port;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let edge: Arc<dyn Edge> = Arc::clone(purse) as _;
        Setup {
            policy,
            private: &format!("web.test:{port} other.test:{port}"),
            table: table(&[("web.test", LOOPBACK), ("other.test", LOOPBACK)]),
            tls_ports: vec![port],
            limits,
            edge: Some(edge),
            roots,
            ..Setup::default()
        }
        .start()
    }

    /// TLS through a tunnel, by a client that trusts the sandbox's authority and the server's own certificate.
    async fn tls(
        &self,
        way: &Way,
        purse: &Purse,
        host: &str,
        protocols: &[&[u8]],
    ) -> Result<TlsStream<TcpStream>, String> {
        let stream = way.tunnel(&format!("{host}:{}", self.port)).await?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots.add(CertificateDer::from_pem_slice(purse.authority.certificate().as_bytes()).unwrap()).unwrap();
        connect(stream, host, roots, protocols).await
    }

    /// One request by HTTP/1.1, and everything that comes back.
    async fn ask(&self, way: &Way, purse: &Purse, host: &str, request: &str) -> String {
        let mut tls = self.tls(way, purse, host, &[b"http/1.1"]).await.unwrap();
        let request = request.replace("PORT", &self.port.to_string());
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

async fn connect(
    stream: TcpStream,
    host: &str,
    roots: RootCertStore,
    protocols: &[&[u8]],
) -> Result<TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.map_err(|error| error.to_string())
}

async fn mirror(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
        });
        let response =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", "shout");
        return Ok(response.body(Full::default()).unwrap());
    }
    let mut text = format!("{:?} {} {}\n", request.version(), request.method(), request.uri());
    let mut names: Vec<_> = request.headers().iter().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in names {
        writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes())).unwrap();
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    write!(text, "\n{}", String::from_utf8_lossy(&body)).unwrap();
    Ok(Response::new(Full::new(text.into())))
}

#[tokio::test]
async fn a_placeholder_becomes_the_secret_in_headers_and_bodies_for_its_host_only() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let request = |host: &str| {
        format!(
            "POST /p?q={PLACEHOLDER} HTTP/1.1\r\nhost: {host}:PORT\r\nx-key: k{PLACEHOLDER}\r\ncontent-length: 27\r\nconnection: close\r\n\r\n\
             [{PLACEHOLDER}]"
        )
    };
    let answer = mirror.ask(&way, &purse, "web.test", &request("web.test")).await;
    let length = SECRET.len() + 2;
    // Not in the URL, which ends up in logs.
    assert!(answer.contains(&format!("HTTP/1.1 POST /p?q={PLACEHOLDER}\n")), "{answer}");
    assert!(answer.contains(&format!("content-length: {length}\n")), "{answer}");
    assert!(answer.contains(&format!("x-key: k{SECRET}\n")), "{answer}");
    assert!(answer.ends_with(&format!("\n[{SECRET}]")), "{answer}");
    let spent = ("web.test".to_owned(), "vcrd_one".to_owned(), Spent::Answered(200));
    assert_eq!(*purse.spent.lock().unwrap(), [spent]);

    let answer = mirror.ask(&way, &purse, "other.test", &request("other.test")).await;
    assert!(answer.contains(&format!("x-key: k{PLACEHOLDER}\n")) && !answer.contains(SECRET), "{answer}");
    assert!(answer.ends_with(&format!("\n[{PLACEHOLDER}]")), "{answer}");
    assert_eq!(purse.spent.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_place_that_is_not_enabled_keeps_the_placeholder() {
    let mirror = Mirror::start().await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: web.test:PORT\r\nx-key: {PLACEHOLDER}\r\ncontent-length: 25\r\nconnection: close\r\n\r\n{PLACEHOLDER}"
    );
    for (in_headers, in_body) in [(true, false), (false, true)] {
        let purse = purse("web.test", in_headers, in_body);
        let way = mirror.way(limited(&["web.test"]), &purse);
        let answer = mirror.ask(&way, &purse, "web.test", &request).await;
        let word = |is_replaced| if is_replaced { SECRET } else { PLACEHOLDER };
        assert!(answer.contains(&format!("x-key: {}\n", word(in_headers))), "{answer}");
        assert!(answer.ends_with(&format!("\n\n{}", word(in_body))), "{answer}");
    }
}

#[tokio::test]
async fn a_long_body_of_unknown_length_is_replaced_as_it_passes() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let (half, rest) = PLACEHOLDER.split_at(9);
    let request = format!(
        "POST / HTTP/1.1\r\nhost: web.test:PORT\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         {:x}\r\n<{half}\r\n{:x}\r\n{rest}>\r\n0\r\n\r\n",
        half.len() + 1,
        rest.len() + 1,
    );
    let answer = mirror.ask(&way, &purse, "web.test", &request).await;
    assert!(answer.ends_with(&format!("\n\n<{SECRET}>")), "{answer}");
    assert!(answer.contains("transfer-encoding: chunked\n"), "{answer}");
}

#[tokio::test]
async fn http2_is_spoken_where_both_sides_offer_it() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let tls = mirror.tls(&way, &purse, "web.test", &[b"h2", b"http/1.1"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let ask = |host: &str| {
        let (half, rest) = PLACEHOLDER.split_at(3);
        let frames = [half, rest]
            .map(|part| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(part.as_bytes()))));
        Request::post(format!("https://{host}:{}/two", mirror.port))
            .header("x-key", PLACEHOLDER)
            .body(StreamBody::new(futures_util::stream::iter(frames)))
            .unwrap()
    };
    for _ in 0..3 {
        let response = sender.send_request(ask("web.test")).await.unwrap();
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/2.0 POST"), "{answer}");
        assert!(
            answer.contains(&format!("x-key: {SECRET}\n")) && answer.ends_with(&format!("\n\n{SECRET}")),
            "{answer}"
        );
    }
    let response = sender.send_request(ask("other.test")).await.unwrap();
    assert_eq!(response.status(), 421);
}

#[tokio::test]
async fn what_the_vault_has_by_now_is_spent_on_an_open_connection_too() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let tls = mirror.tls(&way, &purse, "web.test", &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut ask = async || {
        let request = Request::get(format!("https://web.test:{}/", mirror.port));
        let request = request.header("x-key", PLACEHOLDER).body(Full::<Bytes>::default()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    assert!(ask().await.1.contains(&format!("x-key: {SECRET}\n")));
    *purse.secret.lock().unwrap() = Some(vec!["rotated".to_owned()]);
    assert!(ask().await.1.contains("x-key: rotated\n"));
    *purse.secret.lock().unwrap() = None;
    assert_eq!(ask().await.0, 503);
    *purse.secret.lock().unwrap() = Some(Vec::new());
    assert!(ask().await.1.contains(&format!("x-key: {PLACEHOLDER}\n")));
}

#[tokio::test]
async fn a_body_does_not_grow_without_bounds_by_its_secrets() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    *purse.secret.lock().unwrap() = Some(vec!["s".repeat(4_096)]);
    let body = PLACEHOLDER.repeat(10_000);
    let length = body.len();
    let kept = format!("content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    let kept = format!("POST / HTTP/1.1\r\nhost: web.test:PORT\r\n{kept}");
    let answer = mirror.ask(&way, &purse, "web.test", &kept).await;
    assert!(answer.starts_with("HTTP/1.1 413 egress: the body has too many placeholders"), "{answer:.200}");
    // As it passes, it may become as long as it likes: nobody keeps it.
    let passing =
        format!("transfer-encoding: chunked\r\nconnection: close\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
    let passing = format!("POST / HTTP/1.1\r\nhost: web.test:PORT\r\n{passing}");
    let answer = mirror.ask(&way, &purse, "web.test", &passing).await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let sent = body.rsplit("\n\n").next().unwrap();
    assert_eq!((sent.len(), sent.trim_matches('s')), (10_000 * 4_096, ""));
}

#[tokio::test]
async fn more_slow_bodies_than_are_kept_at_once_are_all_answered() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let request = format!(
        "POST / HTTP/1.1\r\nhost: web.test:{}\r\ncontent-length: 3\r\nconnection: close\r\n\r\nab",
        mirror.port
    );
    let mut slow = Vec::new();
    for _ in 0..17 {
        let mut tls = mirror.tls(&way, &purse, "web.test", &[b"http/1.1"]).await.unwrap();
        tls.write_all(request.as_bytes()).await.unwrap();
        slow.push(tls);
    }
    // Of those who wait for the last byte one has no place; which one is not known. With all bytes there, all have their turn.
    for tls in &mut slow {
        tls.write_all(b"c").await.unwrap();
    }
    for mut tls in slow {
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(20), tls.read_to_end(&mut answer));
        let _ = reading.await.expect("each is answered");
        assert!(answer.ends_with(b"\n\nabc"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn more_bodies_than_are_kept_at_once_pass_over_one_connection() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let tls = mirror.tls(&way, &purse, "web.test", &[b"h2"]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    // Together far more than a connection's window.
    let body = format!("{}{PLACEHOLDER}", "x".repeat(300_000));
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let request = Request::post(format!("https://web.test:{}/", mirror.port));
        let request = request.body(Full::new(Bytes::from(body.clone()))).unwrap();
        let mut sender = sender.clone();
        all.spawn(async move {
            sender.ready().await.unwrap();
            let response = sender.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        });
    }
    let answers = tokio::time::timeout(Duration::from_secs(60), all.join_all()).await.expect("all pass");
    assert!(answers.iter().all(|answer| answer.ends_with(SECRET.as_bytes())));
}

#[tokio::test]
async fn a_request_within_the_tunnel_must_be_for_its_host() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    for head in [
        "GET / HTTP/1.1\r\nhost: other.test:PORT",
        "GET / HTTP/1.1\r\nhost: web.test",
        "GET https://other.test:PORT/ HTTP/1.1\r\nhost: web.test:PORT",
        "GET / HTTP/1.1\r\nhost: web.test:PORT\r\nhost: web.test:PORT",
    ] {
        let request = format!("{head}\r\nx-key: {PLACEHOLDER}\r\nconnection: close\r\n\r\n");
        let answer = mirror.ask(&way, &purse, "web.test", &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 421 ") || answer.starts_with("HTTP/1.1 400 "),
            "{head}: {answer}"
        );
    }
    assert_eq!(*purse.spent.lock().unwrap(), []);
}

#[tokio::test]
async fn who_does_not_trust_the_authority_sees_a_certificate_that_it_does_not_know() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let stream = way.tunnel(&format!("web.test:{}", mirror.port)).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(mirror.certificate.clone()).unwrap();
    let refused = connect(stream, "web.test", roots.clone(), &[b"http/1.1"]).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");

    // Unless the operator names the host for such clients: then nothing is put in.
    let edge: Arc<dyn Edge> = Arc::clone(&purse) as _;
    let way = Setup {
        private: &format!("web.test:{}", mirror.port),
        table: table(&[("web.test", LOOPBACK)]),
        tls_ports: vec![mirror.port],
        edge: Some(edge),
        uninspected_hosts: vec!["*.test".parse().unwrap()],
        ..Setup::default()
    }
    .start();
    let stream = way.tunnel(&format!("web.test:{}", mirror.port)).await.unwrap();
    let mut tls = connect(stream, "web.test", roots, &[b"http/1.1"]).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: web.test:{}\r\nx-key: {PLACEHOLDER}\r\nconnection: close\r\n\r\n",
        mirror.port
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).contains(&format!("x-key: {PLACEHOLDER}\n")));
}

#[tokio::test]
async fn a_host_whose_certificate_is_not_trusted_gets_nothing() {
    let mirror = Mirror::start().await;
    let stranger = Mirror::start().await;
    let purse = purse("web.test", true, true);
    // The way trusts the mirror's certificate; the stranger has another for the same name.
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let port = stranger.port;
    let way = Way { address: way.address, ..way };
    let refused = way.tunnel(&format!("web.test:{port}")).await.unwrap_err();
    assert!(refused.contains("port"), "{refused}");

    let mut roots = RootCertStore::empty();
    roots.add(mirror.certificate.clone()).unwrap();
    let edge: Arc<dyn Edge> = Arc::clone(&purse) as _;
    let private = format!("web.test:{port}");
    let way = Setup {
        private: &private,
        table: table(&[("web.test", LOOPBACK)]),
        tls_ports: vec![port],
        edge: Some(edge),
        roots,
        ..Setup::default()
    }
    .start();
    let request =
        format!("GET / HTTP/1.1\r\nhost: web.test:PORT\r\nx-key: {PLACEHOLDER}\r\nconnection: close\r\n\r\n");
    let answer = stranger.ask(&way, &purse, "web.test", &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 egress: TLS with web.test failed"), "{answer}");
    assert_eq!(*purse.spent.lock().unwrap(), []);
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let refused = mirror.tls(&way, &purse, "web.test", &[b"private"]).await.unwrap_err();
    assert!(refused.contains("AccessDenied"), "{refused}");
    // To a host without secrets it passes.
    mirror.tls(&way, &purse, "other.test", &[b"private"]).await.unwrap();
}

#[tokio::test]
async fn without_the_vault_nothing_passes_that_could_need_it() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    *purse.secret.lock().unwrap() = None;
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let refused = mirror.tls(&way, &purse, "web.test", &[b"http/1.1"]).await.unwrap_err();
    assert!(refused.contains("AccessDenied"), "{refused}");
}

/// A connection that is no longer one for requests.
async fn upgraded(mirror: &Mirror, way: &Way, purse: &Purse) -> TlsStream<TcpStream> {
    let mut tls = mirror.tls(way, purse, "web.test", &[b"http/1.1"]).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: web.test:{}\r\nconnection: Upgrade\r\nupgrade: shout\r\n\r\n",
        mirror.port
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tls.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    tls
}

#[tokio::test]
async fn an_upgraded_connection_keeps_to_the_bounds_of_others() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let limits =
        Limits { connections_max: 1, idle_time_max: Duration::from_millis(500), ..Limits::default() };
    let way = mirror.way_within(Policy::Unrestricted {}, &purse, limits);
    let mut first = upgraded(&mirror, &way, &purse).await;
    // It has the only place, until it has been quiet for too long.
    let (ended, _second) = tokio::join!(
        tokio::time::timeout(Duration::from_secs(20), async {
            let _ = first.read_u8().await;
            std::time::Instant::now()
        }),
        async {
            let second = upgraded(&mirror, &way, &purse).await;
            (second, std::time::Instant::now())
        }
    );
    let (_, begun) = _second;
    assert!(ended.expect("it is cut off") <= begun + Duration::from_millis(100), "both at the same time");
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let mirror = Mirror::start().await;
    let purse = purse("web.test", true, true);
    let way = mirror.way(Policy::Unrestricted {}, &purse);
    let mut tls = upgraded(&mirror, &way, &purse).await;
    tls.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    tls.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"HELLO");
}

#[tokio::test]
async fn plain_http_keeps_its_placeholders() {
    let mut origin =
        crate::common::Origin::start("\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let purse = purse("web.test", true, true);
    let edge: Arc<dyn Edge> = Arc::clone(&purse) as _;
    let private = format!("web.test:{}", origin.port);
    let way = Setup {
        private: &private,
        table: table(&[("web.test", LOOPBACK)]),
        edge: Some(edge),
        ..Setup::default()
    }
    .start();
    let request = format!("GET http://web.test:{}/ HTTP/1.1\r\nx-key: {PLACEHOLDER}\r\n\r\n", origin.port);
    assert!(way.ask(request).await.starts_with("HTTP/1.1 200 "));
    assert!(origin.seen().await.contains(PLACEHOLDER));
}

#[tokio::test]
async fn what_is_asked_of_the_exit_itself_is_answered_there_or_refused() {
    let purse = purse("web.test", true, true);
    let edge: Arc<dyn Edge> = Arc::clone(&purse) as _;
    let way = Setup { edge: Some(edge), policy: Policy::NOTHING, ..Setup::default() }.start();
    let answer =
        way.ask("POST /git/hello HTTP/1.1\r\nhost: 127.0.0.1:3128\r\ncontent-length: 2\r\n\r\nhi").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhi"), "{answer}");
    let answer = way.ask("GET /other HTTP/1.1\r\nhost: 127.0.0.1:3128\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("this is a proxy"), "{answer}");
    let way = Setup::default().start();
    let answer = way.ask("GET /git/hello HTTP/1.1\r\nhost: 127.0.0.1:3128\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn the_same_seed_is_the_same_authority_and_another_is_not() {
    let names: BTreeSet<String> = [1, 1, 2]
        .map(|seed| Authority::from_seed("sbx_a", &[seed; 32]).unwrap().certificate().to_owned())
        .into_iter()
        .collect();
    // Signatures differ from time to time; keys do not.
    assert!(names.len() >= 2);
    assert!(Authority::from_seed("sbx_a", &[0; 32]).is_err());
}

#[tokio::test]
async fn what_is_printed_of_a_replacement_has_neither_placeholder_nor_secret() {
    let replacements = purse("web.test", true, true).replacements(&Host::parse("web.test").unwrap()).await;
    let printed = format!("{replacements:?}");
    assert!(printed.contains("vcrd_one"), "{printed}");
    assert!(!printed.contains(SECRET) && !printed.contains(PLACEHOLDER), "{printed}");
}
