//! Saving a sandbox and making another one of it: what survives, what is refused, and what harms nobody.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use sandbox::archive::Written;
use sandbox::{Access, Error, Limits, Mount, Resources, Restore};
use serde_json::json;
use tools::archive::Scope;

use crate::host::{Host, Sandbox, eventually, fresh_id};

/// A folder for snapshots, for this user alone as the server's is.
fn snapshots() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn save(sandbox: &Sandbox<'_>, folder: &Path) -> (PathBuf, Written) {
    let file = folder.join(sandbox.id.to_string());
    let saved = sandbox.provider.save(&sandbox.id, 1, &file).await.unwrap();
    fs::write(base_of(&file), saved.base).unwrap();
    (file, saved.written)
}

/// Where a test keeps what a snapshot was saved on.
fn base_of(file: &Path) -> PathBuf {
    file.with_extension("base")
}

/// What was saved, on the base that it was saved on; forged snapshots on the host's own.
fn restoring(file: &Path) -> Resources {
    let base = fs::read_to_string(base_of(file)).unwrap_or_else(|_| "host".to_owned());
    let restore = Restore { file: file.to_owned(), base };
    Resources { restore: Some(restore), ..Resources::default() }
}

#[tokio::test]
async fn a_workspace_with_files_of_every_kind_is_restored() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    // Namespaces let everything be written, containers a few places.
    let third = if host.has_containers() { "/var/tmp" } else { "/srv" };
    let build = r#"(set -e
        mkdir -p deep/er 'with space' && echo plain > deep/er/plain && ln deep/er/plain hard
        ln -s deep/er/plain soft && ln -s /etc/passwd absolute && ln -s nowhere dangling
        mkfifo pipe && truncate -s 1G sparse && printf end | dd of=sparse bs=1 seek=500M conv=notrunc 2>/dev/null
        echo ro > readonly && chmod 444 readonly && echo no > closed && chmod 000 closed
        mkdir sealed && echo in > sealed/in && chmod 000 sealed
        printf odd > "$(printf 'odd\n\377\001 name')" && printf dash > ./-rf && touch -d @86400.5 old
        touch "$(printf 'n%.0s' $(seq 255))"
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
        echo home > ~/.profile-of-mine && echo tmp > /tmp/t && chmod 1777 /tmp && echo third > $THIRD/s
        mkdir -p $THIRD/top && echo top > $THIRD/top/file)"#
        .replace("$THIRD", third);
    // Podman's places belong to nobody in there.
    let build = if testkit::engine::is_podman() { build.replace("chmod 1777 /tmp", "true") } else { build };
    assert_eq!(sandbox.bash(&build).await, "(no output)");
    // Files that nobody may read are summed up last, because an ordinary user has to open them for that.
    let list = r#"(cd /; PLACES="workspace $(echo $HOME | cut -c 2-) tmp $THIRD"; find $PLACES ! -name socket ! -type d -printf '%p %y %m %U:%G %s %T@ %n %l\n' 2>/dev/null | LC_ALL=C sort; find $PLACES -type d -printf '%p %m %U:%G %T@\n' 2>/dev/null | LC_ALL=C sort; stat -c '%b blocks' workspace/sparse; sha1sum workspace/hard) | sed "s/$(id -u):$(id -g)/own:own/""#;
    let list = &list.replace("$THIRD", third.trim_start_matches('/'));
    let list = &match testkit::engine::is_podman() {
        // Nor their times.
        true => list.replace("$PLACES -type d", "$PLACES -mindepth 1 -type d"),
        false => list.clone(),
    };
    let before = sandbox.bash(list).await;
    assert!(before.lines().count() > 20, "{before}");
    let (file, saved) = save(&sandbox, folder.path()).await;
    assert_eq!(saved.left_out, 1, "the socket");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    sandbox.provider.destroy(&sandbox.id).await.unwrap();

    let restored = host.sandbox(restoring(&file)).await;
    assert_eq!(restored.bash(list).await, before);
    let closed = restored.bash("chmod 700 closed sealed; cat closed sealed/in").await;
    assert_eq!(closed, "no\nin");
    assert_eq!(
        restored.bash("pwd; cat soft; echo more >> hard; tail -1 deep/er/plain").await,
        "/workspace\nplain\nmore"
    );
    host.end().await;
}

/// Whoever waits for its child of `vfork` cannot be stopped.
#[tokio::test]
async fn what_does_not_stand_still_is_saved_later_and_not_never() {
    if crate::docker::is_walled_in() {
        // A kernel of its own has other ways of waiting.
        return;
    }
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    let wait = "python3 -c 'import ctypes, time; ctypes.CDLL(None).vfork(); time.sleep(600)' > /dev/null 2>&1 & \
                until grep -q 'State:.D' /proc/$!/status; do sleep 0.1; done; echo kept > file";
    sandbox.bash(wait).await;
    for attempt in 0..3 {
        let file = folder.path().join("busy");
        let busy = sandbox.provider.save(&sandbox.id, 1, &file).await;
        assert!(matches!(busy, Err(Error::Busy { .. })), "attempt {attempt}: {busy:?}");
        assert!(!file.exists());
    }
    let (file, _) = save(&sandbox, folder.path()).await;
    let restored = host.sandbox(restoring(&file)).await;
    assert_eq!(restored.bash("cat file").await, "kept");
    assert_eq!(sandbox.bash("cat file").await, "kept", "and it goes on");
    host.end().await;
}

#[tokio::test]
async fn what_was_installed_changed_and_deleted_outside_of_the_workspace_is_restored() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox
        .bash(
            "rm /usr/bin/env; echo mine > /etc/hostname; echo conf > /etc/new.conf; printf '#!/bin/sh\\necho installed' > \
             /usr/local/bin/thing; chmod 755 /usr/local/bin/thing; rm -rf /usr/share/doc 2>/dev/null; mkdir -p /usr/share/doc; \
             echo only > /usr/share/doc/only; mkdir -p /opt; echo o > /opt/o; rm -f /usr/local/sbin; rmdir /srv /media",
        )
        .await;
    let look = "ls /usr/bin/env 2>&1; cat /etc/hostname /etc/new.conf; thing; ls /usr/share/doc; cat /opt/o; ls /usr/bin | wc -l";
    let before = sandbox.bash(look).await;
    let (file, _) = save(&sandbox, folder.path()).await;
    let restored = host.sandbox(restoring(&file)).await;
    assert_eq!(restored.bash(look).await, before);
    // A layer once more: the next snapshot has what the first had, and what came after.
    restored.bash("echo second > /usr/local/bin/second").await;
    let (file, _) = save(&restored, folder.path()).await;
    let again = host.sandbox(restoring(&file)).await;
    assert_eq!(again.bash(look).await, before);
    assert_eq!(
        again.bash("cat /usr/local/bin/second; ls /dev/null; ls -d /proc/self; hostname").await,
        "second\n/dev/null\n/proc/self\nsandbox"
    );
    host.end().await;
}

#[tokio::test]
async fn a_hundred_thousand_small_files_are_restored() {
    let (host, folder) = (Host::new(), snapshots());
    // A container's workspace is one part of its disk, and holds as many files as that part.
    let limits = match host.has_containers() {
        true => Limits { memory_bytes: 6 << 30, disk_bytes: 4 << 30, ..Limits::default() },
        false => Limits::default(),
    };
    let sandbox = host.sandbox(Resources { limits: limits.clone(), ..Resources::default() }).await;
    let make = "import os\nfor g in range(100):\n    os.mkdir(f'g{g}')\n    for n in range(1000):\n        open(f'g{g}/{n}', 'w').write(f'{g}:{n}')";
    sandbox.python(make).await;
    let (file, saved) = save(&sandbox, folder.path()).await;
    assert!(saved.entries > 100_000, "{saved:?}");
    sandbox.provider.destroy(&sandbox.id).await.unwrap();
    let restored = host.sandbox(Resources { limits, ..restoring(&file) }).await;
    assert_eq!(restored.bash("find . -type f | wc -l; cat g99/999").await, "100000\n99:999");
    host.end().await;
}

#[tokio::test]
async fn a_sandbox_stands_still_from_its_snapshot_until_it_is_used_again() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("(while :; do echo tick >> ticks; sleep 0.01; done) > /dev/null 2>&1 &").await;
    let stops = "(kill -STOP $BASHPID; echo woken > woken) > /dev/null 2>&1 &";
    sandbox.bash(&format!("{stops} until grep -q 'State:.T' /proc/$!/status; do sleep 0.01; done")).await;
    let (first, _) = save(&sandbox, folder.path()).await;
    let (second, _) = (folder.path().join("second"), ());
    sandbox.provider.save(&sandbox.id, 1, &second).await.unwrap();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "something moved in between");
    // Used again, it goes on, but for the one that had stopped by itself.
    let goes_on = sandbox.bash("wc -l < ticks; until [ $(wc -l < ticks) -gt $(cat seen 2>/dev/null || wc -l < ticks | tee seen) ]; do sleep 0.01; done; echo more; ls woken 2>&1");
    let goes_on = goes_on.await;
    assert!(goes_on.contains("more") && goes_on.contains("No such file"), "{goes_on}");
    // Being touched or made again is a use, too.
    let file = folder.path().join("again");
    let look = async || {
        sandbox.provider.save(&sandbox.id, 1, &file).await.unwrap();
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        bytes
    };
    let still = look().await;
    let ticks_again = async {
        loop {
            sandbox.provider.touch(&sandbox.id, 1).await.unwrap();
            if look().await != still {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ticks_again).await.expect("it goes on when it is touched");
    save(&sandbox, &tempfile::tempdir_in(folder.path()).unwrap().keep()).await;
    sandbox.provider.provision(&sandbox.id, 1, &Resources::default()).await.unwrap();
    host.end().await;
}

#[tokio::test]
async fn a_call_in_the_middle_of_saving_is_not_kept_waiting() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("head -c 300M /dev/urandom > large").await;
    let file = folder.path().join("snapshot");
    let saving = host.provider.save(&sandbox.id, 1, &file);
    let calling = async {
        eventually("it is being written", || fs::metadata(&file).is_ok_and(|found| found.len() > 0)).await;
        sandbox.bash("echo here").await
    };
    let (saved, called) = tokio::join!(saving, calling);
    assert_eq!(called, "here");
    assert!(matches!(saved, Err(Error::Busy { .. })), "{saved:?}");
    assert!(!file.exists());
    // The same again, and the sandbox is destroyed instead.
    let saving = host.provider.save(&sandbox.id, 1, &file);
    let destroying = async {
        eventually("it is being written", || fs::metadata(&file).is_ok_and(|found| found.len() > 0)).await;
        host.provider.destroy(&sandbox.id).await.unwrap();
    };
    let (saved, ()) = tokio::join!(saving, destroying);
    assert!(matches!(saved, Err(Error::Gone { .. })), "{saved:?}");
    assert!(!file.exists());
    host.end().await;
}

/// A small file system in memory, until this is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(folder.path()).status();
        assert!(mounted.unwrap().success());
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_while_saving_leaves_nothing_and_harms_nobody() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("head -c 1M /dev/urandom > large").await;
    sandbox.bash("(while :; do echo tick >> ticks; sleep 0.01; done) > /dev/null 2>&1 &").await;
    // Only root can make a small disk; a bound on the length of files is as good for what follows.
    let small = rustix::process::geteuid().is_root().then(SmallDisk::mount);
    let place = small.as_ref().map_or(folder.path(), |disk| disk.0.path());
    let bound = |bytes| {
        let limit = Rlimit { current: bytes, maximum: None };
        let supervisor: Pid = host.supervisor();
        prlimit(Some(supervisor), Resource::Fsize, limit).unwrap()
    };
    if small.is_none() {
        bound(Some(64 << 10));
    }
    let failed = host.provider.save(&sandbox.id, 1, &place.join("snapshot")).await;
    let Err(Error::Unavailable { reason }) = failed else { panic!("{failed:?}") };
    assert!(small.is_none() || reason.contains("No space left"), "{reason}");
    assert_eq!(fs::read_dir(place).unwrap().count(), 0, "nothing is left");
    assert_eq!(
        sandbox
            .bash("n=$(wc -l < ticks); until [ $(wc -l < ticks) -gt $n ]; do sleep 0.01; done; echo moves")
            .await,
        "moves"
    );
    if small.is_none() {
        bound(None);
    }
    save(&sandbox, folder.path()).await;
    host.end().await;
}

#[tokio::test]
async fn ten_megabytes_are_restored_at_once() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("for n in $(seq 100); do head -c 102400 /usr/bin/python3* /bin/bash 2>/dev/null | head -c 102400 > f$n; done").await;
    let (file, saved) = save(&sandbox, folder.path()).await;
    assert!(saved.content_bytes >= 10 << 20 >> 1, "{saved:?}");
    let begun = Instant::now();
    let restored = host.sandbox(restoring(&file)).await;
    println!("restored {} bytes in {:?}", saved.content_bytes, begun.elapsed());
    assert_eq!(restored.bash("ls | wc -l").await, "100");
    host.end().await;
}

#[tokio::test]
async fn more_than_the_new_sandbox_may_hold_is_not_restored() {
    let (host, folder) = (Host::new(), snapshots());
    let sandbox = host.sandbox(Resources::default()).await;
    sandbox.bash("head -c 20M /dev/zero > zeros; truncate -s 500M sparse").await;
    let (file, saved) = save(&sandbox, folder.path()).await;
    assert!(saved.size_bytes < 1 << 20, "a bomb: {saved:?}");
    let small = [
        Limits { disk_bytes: 10 << 20, ..Limits::default() },
        Limits { file_size_bytes: 100 << 20, ..Limits::default() },
    ];
    for limits in small {
        let id = fresh_id();
        let refused = host.provider.provision(&id, 1, &Resources { limits, ..restoring(&file) }).await;
        assert!(matches!(refused, Err(Error::Unrestorable { .. })), "{refused:?}");
    }
    host.end().await;
}

/// A snapshot of a tree that this test builds, as an attacker would.
fn forged(folder: &Path, build: impl FnOnce(&Path)) -> PathBuf {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("r")).unwrap();
    fs::create_dir_all(tree.path().join("u")).unwrap();
    build(tree.path());
    let path = folder.join(fresh_id().to_string());
    let file = File::create_new(&path).unwrap();
    sandbox::archive::save(File::open(tree.path()).unwrap().as_fd(), &Scope::ALL, &file).unwrap();
    path
}

#[tokio::test]
async fn a_snapshot_full_of_links_leads_nobody_out_of_a_sandbox_of_namespaces() {
    use std::os::unix::fs::symlink;
    let (host, folder) = (Host::new(), snapshots());
    // Open to all: what is not written there is not written because nobody came.
    let outside = host.open_folder();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(outside.path().join("hostname"), "untouched").unwrap();
    let data = host.open_folder();
    let file = forged(folder.path(), |tree| {
        for name in [
            "r/var",
            "r/etc",
            "r/usr",
            "r/tmp",
            "r/workspace",
            "r/mnt",
            "r/home",
            "r/run",
            "u/usr",
            "u/etc",
            "r/opt",
        ] {
            symlink(outside.path(), tree.join(name)).unwrap();
        }
    });
    let mounts = vec![
        Mount { host: data.path().to_owned(), inside: "/workspace/data".into(), access: Access::ReadOnly },
        Mount { host: data.path().to_owned(), inside: "/home/me/data".into(), access: Access::ReadOnly },
    ];
    let resources = Resources { hostname: "named".to_owned(), mounts, ..restoring(&file) };
    let restored = host.sandbox(resources).await;
    assert_eq!(
        restored.bash("pwd; ls -d data /home/me/data /usr/bin/env").await,
        "/workspace\n/home/me/data\n/usr/bin/env\ndata"
    );
    // The file tools look at paths by themselves.
    restored.execute("write", json!({"file_path": "/var.saved/x", "content": "y"})).await;
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "something was made outside");
    assert_eq!(fs::read_to_string(outside.path().join("hostname")).unwrap(), "untouched");
    // What stood in the way is still there, under another name.
    assert_eq!(restored.bash("readlink /var.saved").await, outside.path().to_str().unwrap());
    host.end().await;
}

#[tokio::test]
async fn a_snapshot_with_more_than_a_private_layer_is_refused_by_sandboxes_of_namespaces() {
    let (host, folder) = (Host::new(), snapshots());
    type Build = fn(&Path);
    let attacks: [(&str, Build); 4] = [
        ("the sandbox's own devices", |tree| fs::create_dir_all(tree.join("r/dev/shm")).unwrap()),
        ("/proc", |tree| fs::create_dir_all(tree.join("r/proc/x")).unwrap()),
        ("the overlays' own folder", |tree| fs::create_dir_all(tree.join("w/usr")).unwrap()),
        ("a third folder", |tree| fs::create_dir_all(tree.join("x")).unwrap()),
    ];
    for (what, build) in attacks {
        let file = forged(folder.path(), build);
        let refused = host.provider.provision(&fresh_id(), 1, &restoring(&file)).await;
        let Err(Error::Unrestorable { reason }) = refused else { panic!("{what}: {refused:?}") };
        assert!(reason.contains("refused"), "{reason}");
    }
    // Not even a snapshot, and endless.
    let mut nonsense = File::create(folder.path().join("nonsense")).unwrap();
    nonsense.write_all(&vec![b'x'; 1 << 20]).unwrap();
    for path in
        [folder.path().join("nonsense"), "/dev/zero".into(), folder.path().to_owned(), "/dev/null".into()]
    {
        let refused = host.provider.provision(&fresh_id(), 1, &restoring(&path)).await;
        assert!(matches!(refused, Err(Error::Unrestorable { .. })), "{}: {refused:?}", path.display());
    }
    assert!(host.provider.list().await.unwrap().is_empty());
    host.end().await;
}
