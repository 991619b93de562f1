use serde_json::{Value, json};

use super::*;

fn create(resource: Value) -> Result<(Repository, Option<Secret>), String> {
    let hosts = "git.example.com, 127.0.0.1:8443".parse().expect("hosts");
    let create = RepositoryCreate::parse(resource, "resources[0]").map_err(|invalid| invalid.to_string())?;
    let now = Timestamp::from_micros(1);
    create
        .into_resource(ResourceId::from_text("sesrsc_a"), &hosts, now, "resources[0]")
        .map_err(|invalid| invalid.to_string())
}

fn of_url(url: &str) -> Result<String, String> {
    create(json!({"type": "github_repository", "url": url})).map(|(repository, _)| repository.mount_path)
}

#[test]
fn a_repository_is_put_where_its_name_says_unless_somebody_says_otherwise() {
    assert_eq!(of_url("https://github.com/owner/repo"), Ok("/workspace/repo".to_owned()));
    assert_eq!(of_url("https://git.example.com/a/b/c.git"), Ok("/workspace/c".to_owned()));
    let placed = create(json!({
        "type": "github_repository", "url": "https://github.com/o/r", "authorization_token": "ghp_1",
        "checkout": {"type": "commit", "sha": "ABCDEF1"}, "mount_path": "/workspace/x/y/",
    }));
    let (repository, token) = placed.expect("good");
    assert_eq!(repository.mount_path, "/workspace/x/y");
    assert_eq!(repository.checkout, Some(Checkout::Commit { sha: "abcdef1".to_owned() }));
    assert_eq!(token, Some(Secret::new("ghp_1".to_owned())));
    let shown = serde_json::to_string(&Resource::GithubRepository(repository)).expect("writes");
    assert!(shown.starts_with(r#"{"type":"github_repository","id":"sesrsc_a","#) && !shown.contains("ghp_1"));
}

#[test]
fn only_github_and_the_operators_hosts_are_asked() {
    for url in [
        "http://github.com/o/r",
        "https://github.com/o",
        "https://github.com/o/r/x",
        "https://github.com/o/r.git",
        "https://github.com:443/o/r",
        "https://github.com/o/r/",
        "https://github.com/o/r?x=1",
        "https://github.com/o/r#x",
        "https://user:pass@github.com/o/r",
        "https://GITHUB.com/o/r",
        "https://github.com/../r",
        "https://github.com/o/%2e%2e",
        "https://example.com/o/r",
        "https://git.example.com:8443/o/r",
        "https://127.0.0.1/o/r",
        "https://git.example.com/a/.git",
        "git@github.com:o/r",
        "ssh://github.com/o/r",
    ] {
        let refused = of_url(url).expect_err(url);
        assert!(refused.starts_with("resources[0].url: must "), "{refused}");
    }
    assert!(of_url("https://127.0.0.1:8443/o/r").is_ok());
    assert!("a b,c:0".parse::<GitHosts>().is_err() && "https://x".parse::<GitHosts>().is_err());
}

#[test]
fn what_is_no_branch_commit_path_or_token_is_refused_by_name() {
    let with = |name: &str, value: Value| {
        let mut resource = json!({"type": "github_repository", "url": "https://github.com/o/r"});
        resource[name] = value;
        create(resource).expect_err("refused")
    };
    for name in ["-x", "a..b", "a b", "a:b", "x.lock", "/a", "a//b", "@", "a@{1}", ".a", "a\nb"] {
        let refused = with("checkout", json!({"type": "branch", "name": name}));
        assert!(refused.starts_with("resources[0].checkout.name: "), "{refused}");
    }
    for sha in ["abc", "xyzxyzx", "HEAD^{x}"] {
        assert!(
            with("checkout", json!({"type": "commit", "sha": sha}))
                .starts_with("resources[0].checkout.sha: ")
        );
    }
    for path in [
        "/workspace",
        "/workspace/",
        "/etc/x",
        "workspace/x",
        "/workspace/../x",
        "/workspace/a//b",
        "/workspace/./a",
    ] {
        assert!(with("mount_path", json!(path)).starts_with("resources[0].mount_path: "), "{path}");
    }
    for token in ["", "a b", "a\r\nx: y", "ü"] {
        let refused = with("authorization_token", json!(token));
        assert!(refused.starts_with("resources[0].authorization_token: "), "{refused}");
    }
    for kind in ["file", "memory_store"] {
        let refused = create(json!({"type": kind})).expect_err("not built");
        assert!(refused.contains("not supported by this server"), "{refused}");
    }
}

#[test]
fn two_repositories_at_one_place_or_one_within_another_are_refused() {
    let resource = |place: &str| {
        let resource =
            json!({"type": "github_repository", "url": "https://github.com/o/r", "mount_path": place});
        Resource::GithubRepository(create(resource).expect("good").0)
    };
    for [one, other] in
        [["/workspace/r"; 2], ["/workspace/r", "/workspace/r/x"], ["/workspace/r/x", "/workspace/r"]]
    {
        let refused = check_places(&[resource(one), resource(other)], "resources").expect_err("twice");
        assert!(refused.to_string().starts_with("resources[1].mount_path: "), "{refused}");
    }
    check_places(&[resource("/workspace/r"), resource("/workspace/rest")], "resources").expect("apart");
}
