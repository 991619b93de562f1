//! Snapshots that no container has written, given to a container.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use sandbox::{Error, Limits, Resources, Restore};
use tools::archive::Scope;

use super::{engine, host};
use crate::host::{Host, fresh_id};

/// Writes what a tree looks like as a snapshot.
fn forge(tree: &Path, into: &Path) {
    let file = File::create_new(into).unwrap();
    sandbox::archive::save(File::open(tree).unwrap().as_fd(), &Scope::ALL, &file).unwrap();
}

/// What containers of this host are built on.
async fn base(host: &Host) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = host.sandbox(Resources::default()).await;
    let saved = host.provider.save(&sandbox.id, 1, &folder.path().join("snapshot")).await.unwrap();
    host.provider.destroy(&sandbox.id).await.unwrap();
    saved.base
}

fn restoring(file: &Path, base: &str) -> Resources {
    let restore = Restore { file: file.to_owned(), base: base.to_owned() };
    Resources { restore: Some(restore), ..Resources::default() }
}

#[tokio::test]
async fn a_container_takes_no_forged_snapshot_and_leaves_nothing_of_it() {
    let Some(engine) = engine("a_container_takes_no_forged_snapshot_and_leaves_nothing_of_it") else {
        return;
    };
    let (host, folder) = (host(engine), tempfile::tempdir().unwrap());
    let base = base(&host).await;
    type Build = fn(&Path);
    let forgeries: [(&str, &str, Build); 5] = [
        ("outside", "nothing is unpacked", |tree| fs::create_dir_all(tree.join("etc/x")).unwrap()),
        ("beside", "nothing is unpacked", |tree| fs::create_dir_all(tree.join("workspaces/x")).unwrap()),
        ("the door's folder", "run/posthouse", |tree| {
            fs::create_dir_all(tree.join("run")).unwrap();
            fs::write(tree.join("run/posthouse"), "x").unwrap();
        }),
        ("a file for a place", "nothing is unpacked", |tree| fs::write(tree.join("home"), "x").unwrap()),
        ("a place as a file", "a folder is there", |tree| fs::write(tree.join("workspace"), "x").unwrap()),
    ];
    for (number, (what, why, build)) in forgeries.into_iter().enumerate() {
        let tree = tempfile::tempdir().unwrap();
        build(tree.path());
        let file = folder.path().join(number.to_string());
        forge(tree.path(), &file);
        let refused = host.provider.provision(&fresh_id(), 1, &restoring(&file, &base)).await;
        let Err(Error::Unrestorable { reason }) = refused else { panic!("{what}: {refused:?}") };
        assert!(reason.contains(why), "{what}: {reason}");
    }
    // A workspace of nothing but zeros, far larger than the disk.
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("workspace")).unwrap();
    fs::write(tree.path().join("workspace/bomb"), vec![0; 64 << 20]).unwrap();
    let bomb = folder.path().join("bomb");
    forge(tree.path(), &bomb);
    assert!(fs::metadata(&bomb).unwrap().len() < 1 << 20);
    let limits = Limits { disk_bytes: 32 << 20, ..Limits::default() };
    let refused =
        host.provider.provision(&fresh_id(), 1, &Resources { limits, ..restoring(&bomb, &base) }).await;
    assert!(
        matches!(&refused, Err(Error::Unrestorable { reason }) if reason.contains("No space")),
        "{refused:?}"
    );
    // One changed byte, found when everything has been unpacked already.
    let whole = fs::read(&bomb).unwrap();
    for (name, bytes) in [
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("changed", {
            let mut changed = whole.clone();
            let digest = whole.len() - 1;
            changed[digest] ^= 1;
            changed
        }),
        ("nonsense", vec![b'x'; 1 << 20]),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        let refused = host.provider.provision(&fresh_id(), 1, &restoring(&file, &base)).await;
        assert!(
            matches!(&refused, Err(Error::Unrestorable { reason }) if reason.contains("corrupt")),
            "{name}: {refused:?}"
        );
    }
    for path in [Path::new("/dev/zero"), Path::new("/dev/null"), folder.path()] {
        let refused = host.provider.provision(&fresh_id(), 1, &restoring(path, &base)).await;
        assert!(matches!(refused, Err(Error::Unrestorable { .. })), "{}: {refused:?}", path.display());
    }
    assert_eq!(host.provider.list().await.unwrap(), []);
    assert_eq!(host.containers(), [""; 0]);
    host.end().await;
}
