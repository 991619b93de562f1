//! What a hostile agent or a hostile host could try.

use std::fs::{File, TryLockError};

use protocol::resource::Checkout;
use testkit::git::{Right, Server};

use crate::world::{REPOSITORY, TOKEN, Wanted, World, good};

#[tokio::test]
async fn only_the_sessions_own_repositories_are_answered_in_one_spelling() {
    let world = World::start().await;
    world.git.commit("team/secret", "main", &[("secret.txt", b"secret\n")]);
    world.git.allow(TOKEN, "team/secret", Right::Write);
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let other = world.session(Wanted::new("team/secret", TOKEN)).await;
    let exit = world.exit(&record).await;
    let (own, foreign) = (record.resources[0].id(), other.resources[0].id());
    let refs = "info/refs?service=git-upload-pack";
    world.git.seen();
    for target in [
        format!("/git/{foreign}/team/secret/{refs}"),
        format!("/git/{own}/team/secret/{refs}"),
        format!("/git/{own}/{REPOSITORY}/../secret/{refs}"),
        format!("/git/{own}/{REPOSITORY}/%2e%2e/secret/{refs}"),
        format!("/git/{own}/team%2fproject/{refs}"),
        format!("/git/{own}/{REPOSITORY}%2f..%2fsecret/{refs}"),
        format!("/git/{own}//{REPOSITORY}/{refs}"),
        format!("/git/{own}/{REPOSITORY}//{refs}"),
        format!("/git/{own}/{REPOSITORY}.git.git/{refs}"),
        format!("/git/../git/{own}/{REPOSITORY}/{refs}"),
        format!("/git/{own}/{REPOSITORY}/info/refs?service=git-upload-pack&service=x"),
        format!("/git/{own}/{REPOSITORY}/info/refs?x=1&service=git-upload-pack"),
        format!("/git/{own}/{REPOSITORY}/info/refs"),
        format!("/git/{own}/{REPOSITORY}/HEAD"),
        format!("/git/{own}/{REPOSITORY}/config"),
        format!("/git/{own}/{REPOSITORY}/info/lfs/objects/batch"),
        format!("/git/{own}/{REPOSITORY}/settings/keys"),
        format!("/git//{REPOSITORY}/{refs}"),
        format!("/git/{REPOSITORY}/{refs}"),
        "/git/".to_owned(),
    ] {
        let answer = exit.ask("GET", &target).await;
        let is_refused = answer.starts_with("HTTP/1.1 403 ") || answer.starts_with("HTTP/1.1 404 ");
        assert!(is_refused, "{target}: {answer}");
    }
    for method in ["PUT", "DELETE", "POST", "HEAD", "OPTIONS"] {
        let answer = exit.ask(method, &format!("/git/{own}/{REPOSITORY}/{refs}")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{method}: {answer}");
    }
    assert_eq!(world.git.seen(), [], "nothing of it reached the host");
    // What is for nobody here is given back.
    assert!(exit.ask("GET", "/other").await.starts_with("HTTP/1.1 501 "));
    for good in [
        format!("/git/{own}/{REPOSITORY}/{refs}"),
        format!("/git/{own}/{REPOSITORY}.git/{refs}"),
        format!("/git/{own}/{refs}"),
    ] {
        assert!(exit.ask("GET", &good).await.starts_with("HTTP/1.1 200 "), "{good}");
    }
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_token_away() {
    let world = World::start().await;
    let elsewhere = Server::start().await;
    elsewhere.commit("team/trap", "main", &[("x", b"x")]);
    let record = world.session(Wanted::new("team/lure", TOKEN)).await;
    let exit = world.exit(&record).await;
    let target = format!("/git/{}/team/lure/info/refs?service=git-upload-pack", record.resources[0].id());
    let host = world.git.host();
    for to in [
        elsewhere.url("team/trap"),
        elsewhere.url("team/trap").replace("https:", "http:"),
        format!("http://{host}/{REPOSITORY}"),
        format!("https://user@{host}/{REPOSITORY}"),
        format!("//{}/team/trap", elsewhere.host()),
        "file:///etc/passwd".to_owned(),
    ] {
        world.git.redirect("team/lure", &to);
        let answer = exit.ask("GET", &target).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{to}: {answer}");
        assert!(!answer.to_ascii_lowercase().contains("location"), "{answer}");
    }
    assert_eq!(elsewhere.seen(), []);
    let (kind, message) = world.trouble(&record).await;
    assert_eq!(kind, "repository_clone_error");
    assert!(message.contains("sends to another host"), "{message}");
    // For ever in a circle.
    world.git.redirect("team/lure", &world.git.url("team/lure"));
    assert!(exit.ask("GET", &target).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn what_the_sandbox_sends_as_credentials_does_not_reach_the_host() {
    let world = World::start().await;
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let exit = world.exit(&record).await;
    let tree = world.checkout(&record).await;
    let url = exit.url(&record, REPOSITORY).replace("http://", "http://me:mine@");
    world.git.seen();
    let header = "http.extraHeader=Authorization: Bearer mine";
    let (ok, said) = crate::world::git(
        tree.path(),
        &["-c", header, "-c", "http.extraHeader=Cookie: a=b", "ls-remote", &url],
    )
    .await;
    assert!(ok, "{said}");
    let seen = world.git.seen();
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|seen| seen.authorization.as_deref().is_some_and(|value| value.starts_with("Basic eC1hY2"))),
        "{seen:?}"
    );
}

#[tokio::test]
async fn while_a_repository_is_fetched_no_process_shows_the_token() {
    let world = World::start().await;
    world.git.fall_silent();
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let fetching = world.prepare(&record);
    let looking = async {
        // Once a request has arrived git runs, and waits.
        while world.git.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        let (mut arguments, mut environment) = (Vec::new(), Vec::new());
        for process in world.processes() {
            arguments.extend(std::fs::read(process.join("cmdline")).unwrap_or_default());
            environment.extend(std::fs::read(process.join("environ")).unwrap_or_default());
        }
        [arguments, environment].map(|shown| String::from_utf8_lossy(&shown).into_owned())
    };
    let [arguments, environment] = tokio::select! {
        _ = fetching => panic!("nobody answered"),
        shown = looking => shown,
    };
    assert!(arguments.contains("ls-remote"), "git runs");
    let encoded =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x-access-token:{TOKEN}"));
    for shown in [&arguments, &environment] {
        assert!(!shown.contains(TOKEN) && !shown.contains(&encoded));
    }
    // The word for our own socket is no argument either.
    assert!(environment.contains("x-posthouse-fetch") && !arguments.contains("x-posthouse-fetch"));
}

#[tokio::test]
async fn a_repository_of_tricks_does_nothing_on_the_server() {
    let world = World::start().await;
    let mark = world.folder.path().join("mark");
    let run = format!("#!/bin/sh\ntouch {}\n", mark.display());
    world.git.commit(
        REPOSITORY,
        "main",
        &[
            (".gitattributes", b"* filter=lfs diff=x merge=x\n*.lfs filter=lfs\n"),
            (
                ".gitmodules",
                format!(
                    "[submodule \"x\"]\n\tpath = x\n\turl = {}\n\tupdate = !touch {}\n",
                    world.git.url("team/other"),
                    mark.display()
                )
                .as_bytes(),
            ),
            (".githooks/post-checkout", run.as_bytes()),
            ("a.lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ],
    );
    // A link out of the tree, and a file that would lie behind it.
    let bare = world.git.path(REPOSITORY);
    let script = format!(
        "set -e; mkdir {2}; cd {2}; git init -q; git fetch -q {0} main; git reset -q --hard FETCH_HEAD; ln -s /etc out; ln -s {1} mark; \
         git add -A; git -c user.name=a -c user.email=a@b commit -q -m links; git push -q {0} HEAD:refs/heads/main",
        bare.display(),
        mark.display(),
        world.folder.path().join("links").display()
    );
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let tree = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert!(!mark.exists());
    assert!(std::fs::read_link(tree.path().join("out")).is_ok_and(|to| to == std::path::Path::new("/etc")));
    assert!(
        std::fs::read_to_string(tree.path().join("a.lfs")).unwrap().contains("git-lfs"),
        "a pointer stays one"
    );
    assert!(!tree.path().join(".git/hooks").exists());
}

#[tokio::test]
async fn nobody_gets_through_the_door_of_our_own_git_without_its_word() {
    let world = World::start().await;
    world.git.fall_silent();
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let fetching = world.prepare(&record);
    let trying = async {
        while world.git.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        // The port is no secret: it is on the command line.
        let port = world.processes().into_iter().find_map(|process| {
            let line = String::from_utf8(std::fs::read(process.join("cmdline")).ok()?).ok()?;
            let (_, rest) = line.split_once("http://127.0.0.1:")?;
            rest.split('/').next()?.parse::<u16>().ok()
        });
        let port = port.expect("git runs");
        let url = format!("http://127.0.0.1:{port}/repository");
        crate::world::git(world.folder.path(), &["ls-remote", &url]).await
    };
    let (ok, said) = tokio::select! {
        _ = fetching => panic!("nobody answered"),
        tried = trying => tried,
    };
    assert!(!ok && said.contains("403"), "{said}");
}

#[tokio::test]
async fn a_branch_that_is_called_like_a_commit_is_not_taken_for_it() {
    let world = World::start().await;
    let pinned = world.git.git(REPOSITORY, &["rev-parse", "main"]).trim().to_owned();
    let sha = |sha: &str| Wanted {
        checkout: Some(Checkout::Commit { sha: sha.to_owned() }),
        ..Wanted::new(REPOSITORY, TOKEN)
    };
    let trap = world.git.commit(REPOSITORY, &pinned[..7], &[("src/a.txt", b"evil\n")]);
    world.git.git(REPOSITORY, &["update-ref", &format!("refs/tags/{}", &pinned[..8]), &trap]);
    world.git.git(REPOSITORY, &["update-ref", &format!("refs/heads/{pinned}"), &trap]);
    for name in [&pinned[..7], &pinned[..8], &pinned] {
        let tree = world.checkout(&world.session(sha(name)).await).await;
        assert_eq!(good(tree.path(), &["rev-parse", "HEAD"]).await.trim(), pinned, "{name}");
    }
    // Nor where there is no such commit.
    world.git.commit(REPOSITORY, "abcdef1", &[("src/a.txt", b"evil\n")]);
    let (kind, _) = world.trouble(&world.session(sha("abcdef1")).await).await;
    assert_eq!(kind, "repository_checkout_error");
}

#[tokio::test]
async fn nobody_elses_fetch_comes_between_a_sessions_own_and_its_reading() {
    let world = World::with_git(
        r#"case "$*" in *clone*/cache/*) touch $world/reads; while [ ! -e $world/on ]; do sleep 0.01; done;; esac"#,
    )
    .await;
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let trying = async {
        while !world.folder.path().join("reads").exists() {
            tokio::task::yield_now().await;
        }
        // Another token may see more than this session's.
        let other = File::open(world.kept().join("lock")).unwrap().try_lock_shared();
        std::fs::write(world.folder.path().join("on"), "").unwrap();
        other
    };
    let (_, other) = tokio::join!(world.checkout(&record), trying);
    assert!(matches!(other, Err(TryLockError::WouldBlock)), "{other:?}");
}

#[tokio::test]
async fn a_repository_around_the_servers_folder_is_not_read() {
    let world = World::start().await;
    let around = world.folder.path();
    good(around, &["init", "--quiet"]).await;
    good(around, &["config", "url.http://127.0.0.1:1/.insteadOf", "http://127.0.0.1"]).await;
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
}

#[tokio::test]
async fn the_client_is_told_no_path_of_the_server() {
    let fails = r#"case " $* " in *" fetch "*) echo "fatal: not a git repository: '$world/here'" >&2; exit 128;; esac"#;
    let world = World::with_git(fails).await;
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let (kind, message) = world.trouble(&record).await;
    assert_eq!(kind, "repository_clone_error");
    assert!(message.contains("not a git repository: '…'"), "{message}");
    assert!(!message.contains(world.folder.path().to_str().unwrap()), "{message}");
}
