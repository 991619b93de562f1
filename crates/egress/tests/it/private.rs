//! What an operator may allow, and what he may not.

use egress::{Guard, Host, PrivateHosts};

use crate::common::table;

/// Whether the list allows the host on the port. Names: `db.corp` is 10.0.0.5, `cloud.corp` a metadata service,
/// `void.corp` the unspecified address, `web.example` public.
async fn allows(list: &str, host: &str, port: u16) -> bool {
    let names = table(&[
        ("db.corp", "10.0.0.5".parse().unwrap()),
        ("cloud.corp", "169.254.169.254".parse().unwrap()),
        ("void.corp", "0.0.0.0".parse().unwrap()),
        ("web.example", "8.8.8.8".parse().unwrap()),
    ]);
    let guard = Guard::new(list.parse::<PrivateHosts>().unwrap(), []).with_names(names.names());
    guard.resolve(&Host::parse(host).unwrap(), port).await.is_ok()
}

#[tokio::test]
async fn an_entry_allows_what_it_names_and_no_more() {
    let cases = [
        ("", "db.corp", 443, false),
        ("db.corp", "db.corp", 443, true),
        ("DB.Corp.", "db.corp", 443, true),
        ("db.corp", "db.corp", 5432, false),
        ("db.corp:5432", "db.corp", 5432, true),
        ("db.corp:5432", "db.corp", 443, false),
        ("db.corp:5432", "10.0.0.5", 5432, false),
        ("*.corp", "db.corp", 443, true),
        ("*.corp:5432", "db.corp", 5432, true),
        ("*.db.corp", "db.corp", 443, false),
        ("10.0.0.5", "db.corp", 443, true),
        ("10.0.0.5", "10.0.0.5", 80, true),
        ("10.0.0.5", "10.0.0.6", 80, false),
        ("10.0.0.5:8080", "db.corp", 8080, true),
        ("10.0.0.5:8080", "db.corp", 80, false),
        ("10.0.0.5:8080", "web.example", 8080, false),
        ("10.0.0.0/8", "db.corp", 443, true),
        ("10.0.0.0/30", "db.corp", 443, false),
        ("10.0.0.4/30:8443", "db.corp", 8443, true),
        ("0.0.0.0/0", "db.corp", 443, true),
        ("::/0", "db.corp", 443, false),
        ("::/0", "[fd00::1]", 443, true),
        ("[fd00::1]:8080", "[fd00::1]", 8080, true),
        ("[fd00::/8]:8080", "[fd12::1]", 8080, true),
        ("fd00::/8", "[fe80::1]", 443, false),
        ("::ffff:10.0.0.5", "10.0.0.5", 443, true),
        ("167772165", "10.0.0.5", 443, true),
        // A public host needs an entry for its odd ports only.
        ("web.example:8443", "web.example", 8443, true),
        ("web.example:8443", "web.example", 443, true),
        ("8.8.8.8:53", "8.8.8.8", 53, true),
        ("1.1.1.1, db.corp\n\t8.8.4.4,,", "db.corp", 443, true),
        // Metadata: by its very address only.
        ("cloud.corp", "cloud.corp", 80, false),
        ("169.254.0.0/16", "cloud.corp", 80, false),
        ("0.0.0.0/0", "169.254.169.254", 80, false),
        ("169.254.169.254", "cloud.corp", 80, true),
        ("169.254.169.254/32", "169.254.169.254", 80, true),
        // No address of one machine: never.
        ("void.corp", "void.corp", 80, false),
        ("0.0.0.0", "0.0.0.0", 80, false),
        ("::/0", "[::]", 80, false),
        ("64:ff9b::/96", "[64:ff9b::7f00:1]", 80, false),
        ("224.0.0.1", "224.0.0.1", 80, false),
        ("localhost", "localhost", 80, true),
        ("127.0.0.1:8080", "localhost", 8080, true),
    ];
    for (list, host, port, expected) in cases {
        assert_eq!(allows(list, host, port).await, expected, "{host}:{port} by `{list}`");
    }
}

#[test]
fn a_wrong_entry_is_named_with_the_rule_that_it_breaks() {
    let cases = [
        ("db.corp,10.0.0.1/8", "10.0.0.1/8", "first 8"),
        ("10.0.0.0/33", "10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/08", "10.0.0.0/08", "0 to 32"),
        ("fd00::/129", "fd00::/129", "0 to 128"),
        ("fd00::/8:443", "fd00::/8:443", "`[fd00::/8]:443`"),
        ("::ffff:10.0.0.0/104", "::ffff:10.0.0.0/104", "as IPv4"),
        ("corp/8", "corp/8", "number of bits"),
        ("db.corp:0", "db.corp:0", "1 to 65535"),
        ("db.corp:+80", "db.corp:+80", "1 to 65535"),
        ("db.corp:65536", "db.corp:65536", "1 to 65535"),
        ("db.corp:", "db.corp:", "1 to 65535"),
        ("http://db.corp", "http://db.corp", "1 to 65535"),
        ("[fd00::1", "[fd00::1", "not closed"),
        ("[fd00::1]443", "[fd00::1]443", "only `:`"),
        ("*", "*", "neither a host name"),
        ("*.10.0.0.1", "*.10.0.0.1", "neither a host name"),
        ("a.*.corp", "a.*.corp", "neither a host name"),
        ("user@corp", "user@corp", "neither a host name"),
    ];
    for (list, entry, rule) in cases {
        let error = list.parse::<PrivateHosts>().expect_err(list);
        assert_eq!(error.entry, entry);
        assert!(error.rule.contains(rule), "{list}: {error}");
        assert!(error.to_string().contains(entry), "{error}");
    }
}

#[test]
fn the_list_survives_json() {
    let list: PrivateHosts =
        "Db.Corp:5432 *.corp 10.0.0.0/8:8443 10.1.2.3 [fd00::1]:443 fd00::/8 [fd00::/8]:1".parse().unwrap();
    let json = serde_json::to_string(&list).unwrap();
    assert_eq!(
        json,
        r#"["db.corp:5432","*.corp","10.0.0.0/8:8443","10.1.2.3","[fd00::1]:443","fd00::/8","[fd00::/8]:1"]"#
    );
    assert_eq!(serde_json::from_str::<PrivateHosts>(&json).unwrap(), list);
    assert_eq!(list.to_string().parse::<PrivateHosts>().unwrap(), list);
    assert!(serde_json::from_str::<PrivateHosts>(r#"["ok.corp","no/good"]"#).is_err());
}
