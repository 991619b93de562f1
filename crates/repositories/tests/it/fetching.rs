//! What a session gets of its repositories before its first call, and what it is told if it gets nothing.

use std::path::Path;
use std::time::Duration;

use protocol::resource::Checkout;
use repositories::Limits;
use testkit::git::{Right, Scheme};

use crate::world::{REPOSITORY, TOKEN, Wanted, World, good, logged};

fn read(folder: &Path, path: &str) -> String {
    std::fs::read_to_string(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn a_session_gets_the_default_branch_with_its_history_and_no_token() {
    let world = World::start().await;
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let tree = world.checkout(&record).await;
    assert_eq!(read(tree.path(), "src/a.txt"), "a\n");
    assert_eq!(good(tree.path(), &["status", "--porcelain", "--branch"]).await, "## main...origin/main\n");
    assert_eq!(good(tree.path(), &["rev-list", "--count", "HEAD"]).await, "1\n");
    let origin = format!("http://127.0.0.1:3128/git/{}/{REPOSITORY}\n", record.resources[0].id());
    assert_eq!(good(tree.path(), &["remote", "get-url", "origin"]).await, origin);
    good(tree.path(), &["fsck", "--strict"]).await;
    // Neither the token nor a path of the server.
    let place = world.folder.path().to_str().unwrap();
    for word in [TOKEN, place, "x-posthouse-fetch"] {
        let found =
            std::process::Command::new("grep").args(["-rlaF", "--", word]).arg(tree.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "{word}");
    }
}

#[tokio::test]
async fn a_branch_or_a_commit_is_checked_out_if_it_is_there() {
    let world = World::start().await;
    let older = world.git.git(REPOSITORY, &["rev-parse", "main"]).trim().to_owned();
    world.git.commit(REPOSITORY, "main", &[("src/a.txt", b"newer\n")]);
    world.git.commit(REPOSITORY, "side/line", &[("only.txt", b"here\n")]);
    let checkout = |checkout| Wanted { checkout: Some(checkout), ..Wanted::new(REPOSITORY, TOKEN) };
    let branch = Checkout::Branch { name: "side/line".to_owned() };
    let tree = world.checkout(&world.session(checkout(branch)).await).await;
    assert_eq!(read(tree.path(), "only.txt"), "here\n");
    assert_eq!(
        good(tree.path(), &["rev-parse", "--abbrev-ref", "HEAD@{upstream}"]).await,
        "origin/side/line\n"
    );
    for sha in [older.as_str(), &older[..7]] {
        let commit = Checkout::Commit { sha: sha.to_owned() };
        let tree = world.checkout(&world.session(checkout(commit)).await).await;
        assert_eq!(read(tree.path(), "src/a.txt"), "a\n");
        assert_eq!(good(tree.path(), &["rev-parse", "HEAD"]).await.trim(), older);
    }
    for (missing, word) in [
        (Checkout::Branch { name: "nowhere".to_owned() }, "branch `nowhere`"),
        (Checkout::Commit { sha: "abcdef1".to_owned() }, "commit `abcdef1`"),
        (Checkout::Commit { sha: "a".repeat(40) }, "commit `aaaa"),
    ] {
        let (kind, message) = world.trouble(&world.session(checkout(missing)).await).await;
        assert_eq!(kind, "repository_checkout_error");
        assert!(message.contains(word), "{message}");
    }
}

#[tokio::test]
async fn a_commit_to_which_no_branch_leads_is_asked_for_by_its_whole_name() {
    let world = World::start().await;
    let sha = world.git.commit(REPOSITORY, "passing", &[("b.txt", b"b\n")]);
    world.git.git(REPOSITORY, &["branch", "-D", "passing"]);
    let commit = Checkout::Commit { sha: sha.clone() };
    let record = world.session(Wanted { checkout: Some(commit), ..Wanted::new(REPOSITORY, TOKEN) }).await;
    let tree = world.checkout(&record).await;
    assert_eq!(read(tree.path(), "b.txt"), "b\n");
}

#[tokio::test]
async fn what_a_host_says_decides_what_the_client_is_told() {
    let world = World::start().await;
    world.git.commit("team/other", "main", &[("x", b"x")]);
    world.git.allow("ghp_forbidden", REPOSITORY, Right::Forbidden);
    let (lines, _guard) = logged();
    for (repository, token, expected) in [
        (REPOSITORY, Some("ghp_wrong"), "repository_authentication_error"),
        (REPOSITORY, None, "repository_authentication_error"),
        (REPOSITORY, Some("ghp_forbidden"), "repository_forbidden_error"),
        ("team/other", Some(TOKEN), "repository_not_found_error"),
        ("team/nothing", Some(TOKEN), "repository_not_found_error"),
    ] {
        let record = world.session(Wanted { token, ..Wanted::new(repository, "") }).await;
        let (kind, message) = world.trouble(&record).await;
        assert_eq!(kind, expected, "{message}");
        assert!(!token.is_some_and(|token| message.contains(token)));
    }
    let lines = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    assert!(lines.contains("audit") && lines.contains("outcome=\"rejected\""), "{lines}");
    assert!(!lines.contains("ghp_"), "{lines}");
}

#[tokio::test]
async fn what_everybody_may_read_needs_no_token() {
    let world = World::start().await;
    world.git.publish(REPOSITORY);
    let tree =
        world.checkout(&world.session(Wanted { token: None, ..Wanted::new(REPOSITORY, "") }).await).await;
    assert_eq!(read(tree.path(), "README.md"), "hello\n");
}

#[tokio::test]
async fn a_host_that_wants_its_token_as_a_bearer_gets_it_so() {
    let world = World::start().await;
    world.git.wants(Scheme::Bearer);
    let tree = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(read(tree.path(), "README.md"), "hello\n");
}

#[tokio::test]
async fn a_second_session_gets_what_is_new_and_nothing_that_its_own_token_may_not_see() {
    let world = World::start().await;
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    world.git.commit(REPOSITORY, "main", &[("new.txt", b"new\n")]);
    world.git.seen();
    let tree = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(read(tree.path(), "new.txt"), "new\n");
    assert_eq!(std::fs::read_dir(world.cache()).unwrap().count(), 1, "one repository is kept once");
    // What lies in the cache is of no use to whom the host refuses.
    for token in [Some("ghp_of_nobody"), None] {
        let (kind, _) =
            world.trouble(&world.session(Wanted { token, ..Wanted::new(REPOSITORY, "") }).await).await;
        assert_eq!(kind, "repository_authentication_error");
    }
    world.git.revoke(TOKEN);
    let (kind, _) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_authentication_error");
}

#[tokio::test]
async fn what_was_kept_and_is_broken_is_fetched_anew() {
    let world = World::start().await;
    let wanted = || Wanted::new(REPOSITORY, TOKEN);
    world.checkout(&world.session(wanted()).await).await;
    // As after a power cut: the names are there, the content is not.
    let (mut folders, mut broken) = (vec![world.kept().join("git/objects")], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                std::fs::remove_file(&entry).unwrap();
                std::fs::write(&entry, "").unwrap();
                broken += 1;
            }
        }
    }
    assert!(broken > 2);
    let tree = world.checkout(&world.session(wanted()).await).await;
    good(tree.path(), &["fsck"]).await;
}

#[tokio::test]
async fn what_was_taken_back_upstream_is_not_in_later_clones() {
    let world = World::start().await;
    let secret = world.git.commit(REPOSITORY, "mistake", &[("secret.txt", b"a secret in a branch\n")]);
    let first = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    good(first.path(), &["cat-file", "-e", &secret]).await;
    world.git.git(REPOSITORY, &["branch", "-D", "mistake"]);
    let second = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    let (is_there, _) = crate::world::git(second.path(), &["cat-file", "-e", &secret]).await;
    assert!(!is_there, "no object of the deleted branch is left");
    good(second.path(), &["fsck"]).await;
}

#[tokio::test]
async fn a_commit_apart_is_asked_for_anew_each_time_and_is_in_nobody_elses_clone() {
    let world = World::start().await;
    let secret = world.git.commit(REPOSITORY, "passing", &[("secret.txt", b"a secret\n")]);
    world.git.git(REPOSITORY, &["branch", "-D", "passing"]);
    let pinned = || Wanted {
        checkout: Some(Checkout::Commit { sha: secret.clone() }),
        ..Wanted::new(REPOSITORY, TOKEN)
    };
    let plain = || Wanted::new(REPOSITORY, TOKEN);
    let first = world.checkout(&world.session(pinned()).await).await;
    assert_eq!(read(first.path(), "secret.txt"), "a secret\n");
    assert!(!first.path().join(".git/FETCH_HEAD").exists());
    // Of a server that kept it.
    let (kept, host) = (world.kept().join("git"), world.git.path(REPOSITORY));
    let refspec = format!("{secret}:refs/posthouse/{secret}");
    good(&kept, &["fetch", "--quiet", host.to_str().unwrap(), &refspec]).await;
    let other = world.checkout(&world.session(plain()).await).await;
    let (is_there, _) = crate::world::git(other.path(), &["cat-file", "-e", &secret]).await;
    assert!(!is_there);
    let again = world.checkout(&world.session(pinned()).await).await;
    assert_eq!(read(again.path(), "secret.txt"), "a secret\n");
    let other = world.checkout(&world.session(plain()).await).await;
    let (is_there, _) = crate::world::git(other.path(), &["cat-file", "-e", &secret]).await;
    assert!(!is_there);
    // Once the host has it no more, nobody has.
    world.git.git(REPOSITORY, &["prune", "--expire=now"]);
    let (kind, _) = world.trouble(&world.session(pinned()).await).await;
    assert_eq!(kind, "repository_checkout_error");
}

#[tokio::test]
async fn what_was_taken_back_goes_even_if_the_fetch_that_noticed_was_broken_off() {
    let world = World::with_git(r#"case "$*" in *ls-remote*) [ ! -e $world/broken ] || exit 1;; esac"#).await;
    let secret = world.git.commit(REPOSITORY, "mistake", &[("secret.txt", b"a secret in a branch\n")]);
    world.git.git(REPOSITORY, &["tag", "--annotate", "-m", "a secret in a tag", "slip", "main"]);
    let tag = world.git.git(REPOSITORY, &["rev-parse", "slip"]).trim().to_owned();
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    world.git.git(REPOSITORY, &["branch", "-D", "mistake"]);
    std::fs::write(world.folder.path().join("broken"), "").unwrap();
    world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    std::fs::remove_file(world.folder.path().join("broken")).unwrap();
    let later = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    let (is_there, _) = crate::world::git(later.path(), &["cat-file", "-e", &secret]).await;
    assert!(!is_there, "no object of the deleted branch is left");
    good(later.path(), &["cat-file", "-e", &tag]).await;
    world.git.git(REPOSITORY, &["tag", "--delete", "slip"]);
    let later = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    let (is_there, _) = crate::world::git(later.path(), &["cat-file", "-e", &tag]).await;
    assert!(!is_there, "nor of the deleted tag, whose commit is still there");
}

#[tokio::test]
async fn what_a_killed_git_left_hinders_nobody_and_reaches_nobody() {
    let world = World::start().await;
    let secret = world.git.commit(REPOSITORY, "mistake", &[("secret.txt", b"a secret in a branch\n")]);
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    let kept = world.kept().join("git");
    // Killed after it had a whole pack, before anything led to it.
    let unled = world.git.commit(REPOSITORY, "slip", &[("secret.txt", b"another\n")]);
    let host = world.git.path(REPOSITORY);
    let fetch = ["-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-write-fetch-head"];
    good(&kept, &[&fetch[..], &[host.to_str().unwrap(), "slip"]].concat()).await;
    good(&kept, &["cat-file", "-e", &unled]).await;
    let packs = kept.join("objects/pack");
    for pack in std::fs::read_dir(&packs).unwrap().flatten() {
        std::fs::write(pack.path().with_extension("keep"), "fetch-pack 1 on a machine\n").unwrap();
    }
    for left in ["objects/pack/tmp_pack_x", "packed-refs.lock", "HEAD.lock", "refs/heads/main.lock"] {
        std::fs::write(kept.join(left), "left").unwrap();
    }
    for (branch, commit) in [("slip", &unled), ("mistake", &secret)] {
        world.git.git(REPOSITORY, &["branch", "-D", branch]);
        world.git.commit(REPOSITORY, "main", &[("new.txt", branch.as_bytes())]);
        let tree = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
        assert_eq!(read(tree.path(), "new.txt"), branch);
        let (is_there, _) = crate::world::git(tree.path(), &["cat-file", "-e", commit]).await;
        assert!(!is_there, "no object of the deleted branch is left: {branch}");
        let files = std::fs::read_dir(tree.path().join(".git/objects/pack")).unwrap().flatten();
        let names: Vec<String> = files.map(|file| file.file_name().into_string().unwrap()).collect();
        assert!(names.iter().all(|name| name.starts_with("pack-") && !name.ends_with(".keep")), "{names:?}");
    }
}

#[tokio::test]
async fn one_repository_that_is_waited_for_hinders_no_other() {
    let limits = Limits { clones_max: 1, time_max: Duration::from_secs(20), ..Limits::default() };
    let world = World::bounded(limits).await;
    let slow = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    world.checkout(&slow).await;
    // Another server fetches it.
    let lock = std::fs::File::open(world.kept().join("lock")).unwrap();
    lock.lock().unwrap();
    world.git.commit("team/other", "main", &[("other.txt", b"other\n")]);
    world.git.allow(TOKEN, "team/other", Right::Read);
    let other = world.session(Wanted::new("team/other", TOKEN)).await;
    let mut waiting = std::pin::pin!(world.checkout(&slow));
    let tree = tokio::select! {
        biased;
        _ = &mut waiting => panic!("it is locked"),
        tree = world.checkout(&other) => tree,
    };
    assert_eq!(read(tree.path(), "other.txt"), "other\n");
    lock.unlock().unwrap();
    assert_eq!(read(waiting.await.path(), "README.md"), "hello\n");
}

#[tokio::test]
async fn sessions_that_start_at_once_share_one_cache() {
    let world = World::start().await;
    let mut records = Vec::new();
    for _ in 0..6 {
        records.push(world.session(Wanted::new(REPOSITORY, TOKEN)).await);
    }
    let all = futures_util::future::join_all(records.iter().map(|record| world.checkout(record))).await;
    assert!(all.iter().all(|tree| read(tree.path(), "README.md") == "hello\n"));
}

#[tokio::test]
async fn several_repositories_come_each_to_its_place_and_one_that_fails_hinders_none() {
    let world = World::start().await;
    world.git.commit("team/other", "main", &[("other.txt", b"other\n")]);
    world.git.allow(TOKEN, "team/other", Right::Read);
    let at = |repository, mount| Wanted { mount, ..Wanted::new(repository, TOKEN) };
    let record = world
        .session_with(vec![
            at("team/other", "/workspace/project/inner"),
            at("team/nothing", "/workspace/nothing"),
            at(REPOSITORY, "/workspace/project"),
        ])
        .await;
    let prepared = world.prepare(&record).await;
    let places: Vec<&str> = prepared.trees.iter().map(repositories::Ready::at).collect();
    assert_eq!(places, ["/workspace/project", "/workspace/project/inner"]);
    assert_eq!(prepared.errors.len(), 1);
}

#[tokio::test]
async fn an_empty_repository_is_a_place_to_begin() {
    let world = World::start().await;
    world.git.repository("team/empty");
    world.git.allow(TOKEN, "team/empty", Right::Write);
    let tree = world.checkout(&world.session(Wanted::new("team/empty", TOKEN)).await).await;
    assert!(tree.path().join(".git/HEAD").exists());
    assert!(good(tree.path(), &["status"]).await.contains("No commits yet"));
}

#[tokio::test]
async fn a_large_repository_comes_with_its_last_commits() {
    let world =
        World::bounded(Limits { history_bytes_max: 0, history_commits: 2, ..Limits::default() }).await;
    for number in 0..4_u8 {
        world.git.commit(REPOSITORY, "main", &[("n.txt", &[b'0' + number])]);
    }
    let tree = world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(good(tree.path(), &["rev-list", "--count", "HEAD"]).await, "2\n");
    assert_eq!(good(tree.path(), &["status", "--porcelain"]).await, "");
}

#[tokio::test]
async fn a_host_that_never_answers_or_never_ends_holds_nobody_up_for_ever() {
    let world = World::bounded(Limits { silence_max: Duration::from_millis(300), ..Limits::default() }).await;
    world.git.fall_silent();
    let (kind, message) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_clone_error");
    assert!(message.contains("did not answer in time"), "{message}");

    let world = World::bounded(Limits { time_max: Duration::from_millis(1500), ..Limits::default() }).await;
    world.git.fall_silent();
    let (kind, message) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_clone_error");
    assert!(message.contains("was not fetched within 1 seconds"), "{message}");

    let world = World::bounded(Limits { fetch_bytes_max: 1 << 20, ..Limits::default() }).await;
    world.git.never_end();
    let (kind, _) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_clone_error");
}

#[tokio::test]
async fn a_checkout_that_would_be_too_large_is_not_begun() {
    // A few kilobytes that become sixteen megabytes.
    let world = World::bounded(Limits { tree_bytes_max: 8 << 20, ..Limits::default() }).await;
    world.git.commit(REPOSITORY, "main", &[("zeros", &vec![0; 16 << 20])]);
    let (kind, message) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_clone_error");
    assert!(message.contains("bytes of files, where"), "{message}");
    let world = World::bounded(Limits { tree_files_max: 1, ..Limits::default() }).await;
    let (_, message) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert!(message.contains("2 files, where 1 are allowed"), "{message}");
}

#[tokio::test]
async fn a_few_bytes_do_not_become_an_object_beyond_all_bounds() {
    let world = World::bounded(Limits { fetch_bytes_max: 16 << 20, ..Limits::default() }).await;
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    world.git.commit(REPOSITORY, "main", &[("zeros", &vec![0; 24 << 20])]);
    let (kind, _) = world.trouble(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(kind, "repository_clone_error");
}

#[tokio::test]
async fn the_cache_loses_what_is_beyond_its_bound() {
    let limits = Limits { cache_bytes_max: 0, ..Limits::default() };
    let world = World::bounded(limits.clone()).await;
    world.checkout(&world.session(Wanted::new(REPOSITORY, TOKEN)).await).await;
    assert_eq!(std::fs::read_dir(world.cache()).unwrap().count(), 1);
    // Another server on the same folder looks for what is old before its first fetch.
    let settings = repositories::Settings {
        limits,
        ..repositories::Settings::new(
            world.folder.path().join("repositories"),
            world.git.host().parse().unwrap(),
            std::sync::Arc::new(egress::Guard::new(egress::PrivateHosts::default(), [])),
        )
    };
    let other =
        repositories::Repositories::new(world.store.clone(), world.credentials.clone(), settings).unwrap();
    let record = world.session(Wanted::new("team/nothing", TOKEN)).await;
    other.prepare(&world.workspace, &record).await;
    let left: Vec<_> = std::fs::read_dir(world.cache()).unwrap().collect();
    assert_eq!(left.len(), 1, "the new one alone: {left:?}");
}

#[tokio::test]
async fn an_archived_session_has_no_token_left() {
    let world = World::start().await;
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    world.store.archive_session(&world.workspace, &record.id).await.unwrap();
    let (kind, _) = world.trouble(&record).await;
    assert_eq!(kind, "repository_authentication_error");
}
