//! Which addresses are reached, in whichever spelling.

use std::net::IpAddr;

use egress::{Guard, Host, PrivateHosts, Refusal};

use crate::common::table;

fn guard(private: &str) -> Guard {
    Guard::new(private.parse::<PrivateHosts>().unwrap(), [])
}

const FORBIDDEN: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "168.63.129.16",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::0.0.0.0",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:1:ffff::1",
    "100::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "3fff:fff::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:808:808::1",
    "5f00::1",
    "4000::1",
    "2a00::5efe:10.0.0.1",
    "2a00::200:5efe:127.0.0.1",
];

const PUBLIC: &[&str] = &[
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "2001:200::1",
    "2a00:1450:4001::200e",
    "64:ff9b::8.8.8.8",
    "2a00::5efe:8.8.8.8",
];

fn literal(address: &str) -> Host {
    let address: IpAddr = address.parse().unwrap();
    let text = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    Host::parse(&text).unwrap()
}

#[tokio::test]
async fn special_addresses_are_refused_as_literals_and_as_what_a_name_leads_to() {
    for address in FORBIDDEN {
        let names = table(&[("name.example", address.parse().unwrap())]);
        let guard = guard("").with_names(names.names());
        for host in [literal(address), Host::parse("name.example").unwrap()] {
            let refused = guard.resolve(&host, 443).await;
            assert!(matches!(refused, Err(Refusal::Address { .. })), "{address} as {host}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn public_addresses_are_reached_up_to_the_edges_of_what_is_special() {
    for address in PUBLIC {
        let names = table(&[("name.example", address.parse().unwrap())]);
        let guard = guard("").with_names(names.names());
        for host in [literal(address), Host::parse("name.example").unwrap()] {
            let found = guard.resolve(&host, 443).await.unwrap();
            assert_eq!(found, [(address.parse::<IpAddr>().unwrap(), 443).into()], "{address} as {host}");
        }
    }
}

#[tokio::test]
async fn every_spelling_of_loopback_is_loopback_or_no_host() {
    let spellings = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "0x7F.0x0.0x0.0x1",
        "127.0.0.1.",
        "127.1.",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::FFFF:7F00:0001]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "0",
        "0.0.0.0",
        "[::]",
        "１２７.0.0.1",
        "ⓛocalhost",
        "127。0。0。1",
        // No hosts at all.
        "[::1%lo]",
        "[::1%25lo]",
        "%31%32%37.0.0.1",
        "127.0.0.1 ",
        "127.0.0.256",
        "0x",
        "1.2.3.4.5",
        "[::1",
        "::1",
        "",
        ".",
        "..",
        "a..b",
        "-.\u{0}",
        "a b",
        "a/b",
        "a@b",
        "a:80",
        "*.example.com",
        "exa\u{ad}\u{0}mple",
    ];
    let guard = guard("");
    for spelling in spellings {
        let Ok(host) = Host::parse(spelling) else { continue };
        let refused = guard.resolve(&host, 80).await;
        // `1.2.3.4.5` and the like must not become a name that some resolver understands.
        assert!(matches!(refused, Err(Refusal::Address { .. })), "{spelling} became {host}: {refused:?}");
    }
}

#[test]
fn a_name_has_one_form() {
    let long_label = "a".repeat(64);
    let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
    let cases = [
        ("Example.COM", Some("example.com")),
        ("example.com.", Some("example.com")),
        ("bücher.example", Some("xn--bcher-kva.example")),
        ("a_b.example", Some("a_b.example")),
        ("[::FFFF:8.8.8.8]", Some("8.8.8.8")),
        ("[2606:4700:0:0::1]", Some("[2606:4700::1]")),
        ("example.com..", None),
        (".example.com", None),
        ("exa mple.com", None),
        ("exa%6dple.com", None),
        ("example.com\r\nx", None),
        (&*long_label, None),
        (&*long_name, None),
    ];
    for (text, expected) in cases {
        assert_eq!(Host::parse(text).ok().map(|host| host.to_string()).as_deref(), expected, "{text}");
    }
}

#[tokio::test]
async fn the_good_addresses_of_a_name_are_used_and_the_others_left_out() {
    let names = table(&[]);
    let parse = |text: &str| text.parse::<IpAddr>().unwrap();
    names.set(
        "mixed.example",
        vec![vec![parse("10.0.0.1"), parse("8.8.8.8"), parse("::1"), parse("8.8.8.8")]],
    );
    let host = Host::parse("mixed.example").unwrap();
    let found = guard("").with_names(names.names()).resolve(&host, 80).await.unwrap();
    assert_eq!(found, ["8.8.8.8:80".parse().unwrap()]);
    assert_eq!(names.lookups("mixed.example"), 1);
}

#[tokio::test]
async fn a_port_that_is_open_for_nobody_is_refused_without_a_lookup() {
    let names = table(&[("name.example", "8.8.8.8".parse().unwrap())]);
    let guard = guard("other.example:22").with_names(names.names());
    let refused = guard.resolve(&Host::parse("name.example").unwrap(), 22).await;
    assert!(matches!(refused, Err(Refusal::Port { port: 22, .. })), "{refused:?}");
    assert_eq!(names.lookups("name.example"), 0);
}

#[tokio::test]
async fn what_a_refusal_says_does_not_tell_the_address() {
    let names = table(&[("name.example", "10.11.12.13".parse().unwrap())]);
    let guard = guard("").with_names(names.names());
    let refused = guard.resolve(&Host::parse("name.example").unwrap(), 80).await.unwrap_err();
    let shown = format!("{refused} {}", refused.remedy().unwrap());
    assert!(!shown.contains("10.11"), "{shown}");
    assert!(shown.contains("a private address"), "{shown}");
}
