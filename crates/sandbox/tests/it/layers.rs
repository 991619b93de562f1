//! Package layers that somebody hostile has filled: whoever writes a package decides what lies in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sandbox::{Access, Base, Error, Mount, Packages, Resources};

use crate::host::Host;

/// The folder of a layer which no builder has made, and what starts from it.
async fn made_by_hand(host: &Host) -> (PathBuf, Resources) {
    // Nothing can be reached, so nothing is installed; the lock that was taken tells the layer's name.
    let packages = Packages { gem: vec!["nothing".to_owned()], ..Packages::default() };
    let base = Base { packages, ..Base::default() };
    let failed = host.provider.prepare(&base, &|_| {}).await;
    assert!(matches!(failed, Err(Error::Packages { .. })), "{failed:?}");
    let layers = host.data().join("layers");
    let names = fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let lock = names.into_iter().find(|name| name.starts_with(".lock-")).unwrap();
    let layer = layers.join(lock.trim_start_matches(".lock-"));
    for folder in ["u", "r"] {
        fs::create_dir_all(layer.join(folder)).unwrap();
        fs::set_permissions(layer.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(layer.join("layer.json"), "{}").unwrap();
    (layer, Resources { base, ..Resources::default() })
}

fn folder(path: &Path) {
    fs::create_dir_all(path).unwrap();
}

#[tokio::test]
async fn links_in_a_layer_lead_nobody_out_of_the_sandbox() {
    let host = Host::new();
    let (layer, resources) = made_by_hand(&host).await;
    // What anybody could write to, if they came here.
    let (outside, given) = (host.open_folder(), host.open_folder());
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(outside.path().join("file"), "the host's").unwrap();
    fs::write(given.path().join("file"), "given").unwrap();
    folder(&layer.join("r/opt"));
    folder(&layer.join("r/var"));
    for name in ["r/opt/data", "r/opt/way", "r/var/cache", "r/var/lib"] {
        symlink(outside.path(), layer.join(name)).unwrap();
    }
    symlink(outside.path().join("file"), layer.join("r/opt/list")).unwrap();
    folder(&layer.join("r/opt/folder/in"));
    let mount = |host: &Path, inside: &str| Mount {
        host: host.to_owned(),
        inside: inside.into(),
        access: Access::ReadOnly,
    };
    let mounts = vec![
        mount(given.path(), "/opt/data"),
        mount(given.path(), "/opt/way/deeper"),
        mount(&given.path().join("file"), "/opt/list"),
        mount(&given.path().join("file"), "/opt/folder"),
    ];
    let sandbox = host.sandbox(Resources { mounts, ..resources }).await;
    let found = sandbox
        .bash("cat /opt/data/file /opt/way/deeper/file /opt/list /opt/folder; stat -c %F /opt/data /opt/way");
    assert_eq!(found.await, "givengivengivengivendirectory\ndirectory");
    let names: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "nothing was made outside");
    assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "the host's");
    host.end().await;
}

#[tokio::test]
async fn a_folder_in_the_place_of_a_file_of_etc_keeps_no_sandbox_from_being_made() {
    let host = Host::new();
    let (layer, resources) = made_by_hand(&host).await;
    folder(&layer.join("u/etc/hostname/in"));
    fs::write(layer.join("u/etc/hostname/in/kept"), "kept").unwrap();
    symlink("/etc/passwd", layer.join("u/etc/hosts")).unwrap();
    for path in ["u/etc", "u/etc/hostname", "u/etc/hostname/in"] {
        fs::set_permissions(layer.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let sandbox = host.sandbox(Resources { hostname: "build-7".to_owned(), ..resources }).await;
    let found = sandbox.bash("hostname; cat /etc/hostname; grep -c build-7 /etc/hosts");
    assert_eq!(found.await, "build-7\nbuild-7\n1");
    assert!(layer.join("u/etc/hostname/in/kept").exists(), "the layer keeps its own");
    assert_eq!(sandbox.bash("head -1 /etc/passwd | cut -d: -f1").await, "root");
    host.end().await;
}
