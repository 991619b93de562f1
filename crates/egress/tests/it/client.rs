//! The server's own client.

use std::sync::Arc;

use egress::{Client, Guard, PrivateHosts, Refusal, Table, client};
use reqwest::{Method, Url};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::common::{LOOPBACK, Origin, table};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn guarded(private: &str, names: &Table) -> Client {
    // The only error is that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let guard = Guard::new(private.parse::<PrivateHosts>().unwrap(), []).with_names(names.names());
    client(Arc::new(guard), |builder| builder.tls_certs_only([])).unwrap()
}

/// The body, or the rule by which there is none.
async fn get(client: &Client, url: &str) -> Result<String, &'static str> {
    let request = client.request(Method::GET, Url::parse(url).unwrap()).map_err(|refusal| refusal.rule())?;
    match request.send().await {
        Ok(response) => Ok(response.text().await.unwrap()),
        Err(error) => Err(Client::refusal(&error).map_or("other", Refusal::rule)),
    }
}

#[tokio::test]
async fn what_is_not_public_is_refused_by_name_and_by_address() {
    let origin = Origin::start("\r\n\r\n", HELLO).await;
    let port = origin.port;
    let names = table(&[
        ("web.test", LOOPBACK),
        ("in.test", LOOPBACK),
        ("odd.test", LOOPBACK),
        ("meta.test", "169.254.169.254".parse().unwrap()),
    ]);
    let client = guarded(&format!("web.test:{port} 127.0.0.2:{port} *.corp:{port}"), &names);
    let cases = [
        (format!("http://web.test:{port}/"), Ok("hello".to_owned())),
        (format!("http://WEB.test.:{port}/"), Ok("hello".to_owned())),
        (format!("http://odd.test:{port}/"), Err("port")),
        (format!("http://127.0.0.1:{port}/"), Err("port")),
        ("http://web.test/".to_owned(), Err("port")),
        ("http://in.test/".to_owned(), Err("address")),
        ("https://in.test/".to_owned(), Err("address")),
        ("http://meta.test/".to_owned(), Err("address")),
        ("http://127.0.0.1/".to_owned(), Err("address")),
        ("http://2130706433/".to_owned(), Err("address")),
        ("http://[::ffff:127.0.0.1]/".to_owned(), Err("address")),
        ("http://[fd00:ec2::254]/".to_owned(), Err("address")),
        ("http://localhost/".to_owned(), Err("address")),
        ("http://nowhere.test/".to_owned(), Err("unresolved")),
        (format!("http://user@web.test:{port}/"), Err("url")),
        ("ftp://web.test/".to_owned(), Err("url")),
        ("data:text/plain,hello".to_owned(), Err("url")),
    ];
    for (url, expected) in cases {
        assert_eq!(get(&client, &url).await, expected, "{url}");
    }
}

#[tokio::test]
async fn a_redirect_to_what_is_not_public_is_not_followed() {
    let targets = [
        ("http://127.0.0.1/", "address"),
        ("http://in.test/", "address"),
        ("http://[::ffff:a9fe:a9fe]/", "address"),
        ("http://in.test:22/", "port"),
        ("ftp://in.test/", "other"),
        ("http://user:pass@in.test/", "url"),
    ];
    for (target, rule) in targets {
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n");
        let origin = Origin::start("\r\n\r\n", answer.leak()).await;
        let names = table(&[("web.test", LOOPBACK), ("in.test", LOOPBACK)]);
        let client = guarded(&format!("web.test:{}", origin.port), &names);
        let got = get(&client, &format!("http://web.test:{}/", origin.port)).await;
        // A scheme that reqwest does not know is no redirect to it: the answer comes back as it is.
        let expected = if rule == "other" { got.clone() } else { Err(rule) };
        assert_eq!(got, expected, "{target}");
        assert!(got != Ok("hello".to_owned()));
    }
}

#[tokio::test]
async fn redirects_have_a_bound() {
    let origin =
        Origin::start("\r\n\r\n", "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
            .await;
    let client = guarded(&format!("web.test:{}", origin.port), &table(&[("web.test", LOOPBACK)]));
    assert_eq!(get(&client, &format!("http://web.test:{}/", origin.port)).await, Err("url"));
}

#[tokio::test]
async fn a_name_that_turns_private_between_two_lookups_gains_nothing() {
    let mut origin = Origin::start("\r\n\r\n", HELLO).await;
    let names = Table::default();
    names.set("rebind.test", vec![vec!["169.254.169.254".parse().unwrap()], vec![LOOPBACK]]);
    let client = guarded(&format!("rebind.test:{}", origin.port), &names);
    let url = format!("http://rebind.test:{}/", origin.port);
    assert_eq!(get(&client, &url).await, Err("address"));
    assert_eq!(names.lookups("rebind.test"), 1);
    assert_eq!(get(&client, &url).await, Ok("hello".to_owned()));
    assert_eq!(names.lookups("rebind.test"), 2);
    origin.seen().await;
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed() {
    let made = rcgen::generate_simple_self_signed(["web.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut plain = Origin::start("\r\n\r\n", HELLO).await;
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let (tls, open) = (listener.local_addr().unwrap().port(), plain.port);
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let target = if request.starts_with(b"GET /down") {
                format!("http://web.test:{open}/")
            } else {
                format!("https://web.test:{tls}/down")
            };
            let answer = format!("HTTP/1.1 307 Go\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    }));
    let list = format!("web.test:{tls} web.test:{open}").parse::<PrivateHosts>().unwrap();
    let guard = Guard::new(list, []).with_names(table(&[("web.test", LOOPBACK)]).names());
    let root = reqwest::Certificate::from_der(made.cert.der()).unwrap();
    // The only error is that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = client(Arc::new(guard), |builder| builder.tls_certs_only([root])).unwrap();
    let error = client.request(Method::GET, Url::parse(&format!("https://web.test:{tls}/up")).unwrap());
    let error = error.unwrap().send().await.unwrap_err();
    let refusal = Client::refusal(&error).unwrap();
    assert_eq!(*refusal, Refusal::Url { why: "it redirects from https to http" });
    assert!(plain.saw_nothing());
}
