//! Which names a policy allows.

use egress::{Allowed, Host, PACKAGE_REGISTRIES, Pattern, Policy};
use protocol::agent::{McpServer, McpServerTag};
use protocol::environment::Networking;

use crate::common::limited;

fn allows(policy: &Policy, host: &str) -> bool {
    policy.decide(&Host::parse(host).unwrap()).is_ok()
}

#[test]
fn a_pattern_covers_hosts_by_whole_labels() {
    let cases = [
        ("example.com", "example.com", true),
        ("example.com", "EXAMPLE.com.", true),
        ("Example.Com.", "example.com", true),
        ("example.com", "a.example.com", false),
        ("example.com", "example.com.evil.org", false),
        ("example.com", "notexample.com", false),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "a.b.example.com", true),
        ("*.Example.com", "A.EXAMPLE.COM.", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "notexample.com", false),
        ("*.example.com", "a.example.com.evil.org", false),
        ("*.bücher.example", "a.xn--bcher-kva.example", true),
        ("bücher.example", "BÜCHER.example", true),
        ("*.0.0.1.example", "127.0.0.1", false),
    ];
    for (pattern, host, expected) in cases {
        assert_eq!(allows(&limited(&[pattern]), host), expected, "{host} by {pattern}");
    }
    for pattern in
        ["*", "*.", "*.*", "a.*.com", "*a.com", "*.127.0.0.1", "https://a.com", "a.com:443", "a.com/", ""]
    {
        assert!(pattern.parse::<Pattern>().is_err(), "{pattern}");
    }
}

#[test]
fn a_policy_is_made_from_the_environment_and_survives_json() {
    let limited = |mcp, packages| Networking::Limited {
        allowed_hosts: vec!["api.example.com".to_owned()],
        allow_mcp_servers: mcp,
        allow_package_managers: packages,
    };
    let cases = [
        (limited(false, false), [true, false, false, false]),
        (limited(true, false), [true, true, false, false]),
        (limited(false, true), [true, false, true, false]),
        (Networking::Unrestricted {}, [true, true, true, true]),
    ];
    for (networking, expected) in cases {
        let made = Policy::new(&networking, &[server()]).unwrap();
        let json = serde_json::to_string(&made).unwrap();
        let policy: Policy = serde_json::from_str(&json).unwrap();
        assert_eq!(policy, made);
        let hosts = ["api.example.com", "mcp.example.net", "files.pythonhosted.org", "other.example.org"];
        assert_eq!(hosts.map(|host| allows(&policy, host)), expected, "{json}");
    }
    assert!(serde_json::from_str::<Policy>(r#"{"type":"limited","allowed_hosts":[]}"#).is_err());
}

#[test]
fn every_registry_is_a_pattern_and_says_so_when_it_allows() {
    let policy = Policy::Limited { allowed_hosts: vec![], mcp_hosts: vec![], allow_package_managers: true };
    for registry in PACKAGE_REGISTRIES {
        let host = Host::parse(&registry.replace('*', "de")).unwrap();
        assert_eq!(policy.decide(&host).unwrap(), Allowed::PackageRegistry);
    }
    for host in ["upload.pypi.org", "github.com", "storage.googleapis.com", "crates.io", "ubuntu.com"] {
        assert!(!allows(&policy, host), "{host}");
    }
}

fn server() -> McpServer {
    let tag = McpServerTag::Url;
    McpServer { tag, name: "tools".to_owned(), url: "https://mcp.example.net:8443/mcp".to_owned() }
}
