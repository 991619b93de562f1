//! What the agent's git does through the exit: everything, without knowing a token.

use testkit::git::Right;

use crate::world::{Exit, REPOSITORY, TOKEN, Wanted, World, git, good, logged};

/// A checkout whose `origin` is the test's exit.
async fn checkout(world: &World) -> (session::Record, Exit, tempfile::TempDir) {
    let record = world.session(Wanted::new(REPOSITORY, TOKEN)).await;
    let tree = world.checkout(&record).await;
    let exit = world.exit(&record).await;
    good(tree.path(), &["remote", "set-url", "origin", &exit.url(&record, REPOSITORY)]).await;
    (record, exit, tree)
}

#[tokio::test]
async fn pulling_pushing_and_looking_work_as_ever() {
    let world = World::start().await;
    let (_, _exit, tree) = checkout(&world).await;
    let at = tree.path();
    world.git.commit(REPOSITORY, "main", &[("theirs.txt", b"theirs\n")]);
    good(at, &["pull", "--quiet"]).await;
    assert!(at.join("theirs.txt").exists());
    std::fs::write(at.join("ours.txt"), "ours\n").unwrap();
    good(at, &["add", "--all"]).await;
    good(at, &["commit", "--quiet", "-m", "ours"]).await;
    good(at, &["push", "--quiet"]).await;
    good(at, &["push", "--quiet", "origin", "HEAD:refs/heads/new/branch"]).await;
    assert_eq!(world.git.git(REPOSITORY, &["show", "new/branch:ours.txt"]), "ours\n");
    assert!(good(at, &["ls-remote"]).await.contains("refs/heads/new/branch"));
    good(at, &["fetch", "--quiet", "--all", "--tags"]).await;
    good(at, &["push", "--quiet", "origin", "--delete", "new/branch"]).await;
}

#[tokio::test]
async fn large_pushes_and_zipped_requests_pass() {
    let world = World::start().await;
    let (_, _exit, tree) = checkout(&world).await;
    let at = tree.path();
    // Beyond what git keeps in memory, so that it sends in chunks, after it has asked whether it may.
    let noise: Vec<u8> =
        (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(at.join("noise"), &noise).unwrap();
    good(at, &["add", "--all"]).await;
    good(at, &["commit", "--quiet", "-m", "noise"]).await;
    good(at, &["push", "--quiet"]).await;
    assert_eq!(world.git.git(REPOSITORY, &["cat-file", "-s", "main:noise"]).trim(), noise.len().to_string());
    // Many things that both have make a long request, which git zips.
    for number in 0..120_u8 {
        world.git.commit(REPOSITORY, "theirs", &[("n", &[number])]);
        if number % 40 == 0 {
            good(at, &["commit", "--quiet", "--allow-empty", "-m", "ours"]).await;
        }
    }
    for _ in 0..200 {
        good(at, &["commit", "--quiet", "--allow-empty", "-m", "ours"]).await;
    }
    world.git.seen();
    good(at, &["-c", "protocol.version=0", "fetch", "--quiet", "origin"]).await;
    let seen = world.git.seen();
    assert!(seen.iter().any(|seen| seen.encoding.as_deref() == Some("gzip")), "{seen:?}");
}

#[tokio::test]
async fn a_new_token_counts_from_the_next_request_on() {
    let world = World::start().await;
    let (record, _exit, tree) = checkout(&world).await;
    world.git.revoke(TOKEN);
    world.git.allow("ghp_the_second", REPOSITORY, Right::Read);
    let (ok, said) = git(tree.path(), &["fetch"]).await;
    assert!(!ok && said.contains("403"), "{said}");
    world.rotate(&record, "ghp_the_second").await;
    good(tree.path(), &["fetch", "--quiet"]).await;
    good(tree.path(), &["commit", "--quiet", "--allow-empty", "-m", "x"]).await;
    let (ok, said) = git(tree.path(), &["push"]).await;
    assert!(!ok && said.contains("403"), "this token may only read: {said}");
    world.store.archive_session(&world.workspace, &record.id).await.unwrap();
    assert!(!git(tree.path(), &["fetch"]).await.0, "the token is gone with the session");
}

#[tokio::test]
async fn a_repository_that_was_renamed_is_found_where_its_host_says() {
    let world = World::start().await;
    world.git.redirect("team/before", &world.git.url(REPOSITORY));
    let record = world.session(Wanted::new("team/before", TOKEN)).await;
    let tree = world.checkout(&record).await;
    assert!(tree.path().join("README.md").exists());
    let exit = world.exit(&record).await;
    good(tree.path(), &["remote", "set-url", "origin", &exit.url(&record, "team/before")]).await;
    good(tree.path(), &["pull", "--quiet"]).await;
    good(tree.path(), &["commit", "--quiet", "--allow-empty", "-m", "x"]).await;
    good(tree.path(), &["push", "--quiet"]).await;
}

#[tokio::test]
async fn each_use_is_one_line_of_the_audit_log_without_path_or_token() {
    let world = World::start().await;
    let (record, exit, _tree) = checkout(&world).await;
    let (lines, _guard) = logged();
    let target = format!("/git/{}/{REPOSITORY}/info/refs?service=git-upload-pack", record.resources[0].id());
    let answer = exit.ask("GET", &target).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let lines = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    let uses: Vec<&str> = lines.lines().filter(|line| line.contains(" audit: ")).collect();
    let [line] = uses.as_slice() else { panic!("{lines}") };
    let id = record.resources[0].id();
    for word in
        [record.id.as_str(), "agent.id=agent_1", id.as_str(), "host=\"127.0.0.1\"", "outcome=\"spent\""]
    {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!lines.contains(TOKEN) && !line.contains(REPOSITORY), "{lines}");
}
