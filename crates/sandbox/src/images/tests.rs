use std::io::Write;

use super::*;

fn tar_of(entries: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if *kind == "suid" { 0o4755 } else { 0o755 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        // Written into the header as it is: the crate's own functions refuse what an attacker would not.
        let name = header.as_gnu_mut().unwrap();
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        match *kind {
            "folder" => header.set_entry_type(tar::EntryType::Directory),
            "link" | "hard" => {
                let kind = if *kind == "link" { tar::EntryType::Symlink } else { tar::EntryType::Link };
                header.set_entry_type(kind);
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            "device" => header.set_entry_type(tar::EntryType::Block),
            _ => header.set_entry_type(tar::EntryType::Regular),
        }
        let content = if matches!(*kind, "file" | "suid") { content.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

struct Place {
    data: tempfile::TempDir,
    images: Images,
}

impl Place {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let images = Images::new(data.path());
        Self { data, images }
    }

    fn import(&self, name: &str, bytes: &[u8]) -> Result<ImageCard, Error> {
        let file = self.data.path().join("archive");
        fs::write(&file, bytes).unwrap();
        self.images.import(name, &file)
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.data.path().join("images/x/root").join(path)).ok()
    }
}

#[test]
fn a_plain_archive_becomes_an_image_however_it_is_compressed() {
    let plain =
        tar_of(&[("folder", "./bin", ""), ("suid", "./bin/su", "program"), ("device", "./dev/sda", "")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstandard = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for bytes in [plain, gzip.finish().unwrap(), zstandard] {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new();
        let card = place.import("x", &bytes).unwrap();
        assert!(card.digest.starts_with("sha256:"));
        assert_eq!(place.read("bin/su").as_deref(), Some("program"));
        let mode = fs::metadata(place.data.path().join("images/x/root/bin/su")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "no privileges");
        assert!(!place.data.path().join("images/x/root/dev").exists());
        assert!(matches!(place.import("x", &bytes), Err(Error::Exists(_))));
        let kept = place.images.list().unwrap();
        assert_eq!(kept.len(), 1);
        place.images.remove(&kept[0]).unwrap();
        assert!(!place.images.holds("x"));
    }
}

#[test]
fn nothing_is_made_outside_of_the_image() {
    let outside = tempfile::tempdir().unwrap();
    let there = outside.path().to_str().unwrap();
    for entries in [
        vec![("file", "usr/x", ""), ("file", "../../escape", "x")],
        vec![("file", "usr/x", ""), ("hard", "usr/y", "../../../../etc/passwd")],
        vec![("file", "usr/x", ""), ("link", "usr/out", "/nowhere"), ("file", "usr/out/x", "x")],
    ] {
        let place = Place::new();
        let refused = place.import("x", &tar_of(&entries));
        assert!(refused.is_err(), "{entries:?}");
        assert_eq!(
            fs::read_dir(place.data.path().join("images")).unwrap().count(),
            0,
            "nothing half made stays"
        );
    }
    // A link out of the image leads back into it, and is replaced by a file of its name.
    let place = Place::new();
    place
        .import(
            "x",
            &tar_of(&[
                ("folder", "usr", ""),
                ("folder", there.trim_start_matches('/'), ""),
                ("link", "usr/out", there),
                ("file", "usr/out/planted", "x"),
                ("link", "usr/passwd", "/etc/passwd"),
                ("file", "usr/passwd", "own"),
            ]),
        )
        .unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(place.read("usr/passwd").as_deref(), Some("own"));
    assert!(fs::read_to_string("/etc/passwd").unwrap().contains("root"));
}

fn oci(layers: &[Vec<u8>], spoil: bool) -> Vec<u8> {
    let described: Vec<String> = layers
        .iter()
        .map(|layer| format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":1}}"#, sha256(layer)))
        .collect();
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, described.join(","));
    let index = format!(r#"{{"manifests":[{{"digest":"sha256:{}"}}]}}"#, sha256(manifest.as_bytes()));
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, bytes).unwrap();
    };
    for layer in layers {
        let mut bytes = layer.clone();
        if spoil {
            bytes[1000] ^= 1;
        }
        add(format!("blobs/sha256/{}", sha256(layer)), &bytes);
    }
    add(format!("blobs/sha256/{}", sha256(manifest.as_bytes())), manifest.as_bytes());
    add("index.json".to_owned(), index.as_bytes());
    builder.into_inner().unwrap()
}

#[test]
fn layers_lie_over_each_other_and_take_away_what_they_say() {
    let layers = [
        tar_of(&[
            ("folder", "usr/bin", ""),
            ("link", "bin", "usr/bin"),
            ("file", "usr/bin/old", "1"),
            ("file", "usr/bin/kept", "1"),
            ("file", "var/a", "1"),
            ("file", "var/b/c", "1"),
        ]),
        tar_of(&[
            ("file", "bin/new", "2"),
            ("file", "usr/bin/.wh.old", ""),
            ("file", "var/new", "2"),
            ("file", "var/.wh..wh..opq", ""),
        ]),
    ];
    let place = Place::new();
    place.import("x", &oci(&layers, false)).unwrap();
    let found = ["usr/bin/old", "usr/bin/kept", "usr/bin/new", "var/a", "var/b/c", "var/new"]
        .map(|path| place.read(path));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(found, [None, text("1"), text("2"), None, None, text("2")]);
    let spoiled = Place::new().import("x", &oci(&layers, true));
    assert!(matches!(spoiled, Err(Error::NoImage(ref why)) if why.contains("digest")), "{spoiled:?}");
}

#[test]
fn what_docker_saved_is_an_image_too() {
    let layer = tar_of(&[("file", "bin/x", "1")]);
    let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#, sha256(&layer));
    let saved = |config: &str| {
        let manifest = r#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a/layer.tar"]}]"#;
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in [
            ("a/layer.tar", layer.as_slice()),
            ("c.json", config.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let place = Place::new();
    place.import("x", &saved(&config)).unwrap();
    assert_eq!(place.read("bin/x").as_deref(), Some("1"));
    let other = format!(r#"{{"rootfs":{{"diff_ids":["sha256:{}"]}}}}"#, "0".repeat(64));
    assert!(matches!(Place::new().import("x", &saved(&other)), Err(Error::NoImage(_))));
}

#[test]
fn what_is_no_root_file_system_is_refused() {
    let refused = Place::new().import("x", &tar_of(&[("file", "readme", "x")]));
    assert!(matches!(refused, Err(Error::NoImage(_))), "{refused:?}");
    let refused = Place::new().import("x", b"this is no archive at all, only a line of text");
    assert!(refused.is_err());
    assert!(matches!(Place::new().import("../x", b""), Err(Error::Name(_))));
}

#[test]
fn of_this_machine_what_everybody_may_read_is_copied_and_nothing_of_its_people() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let (host, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let put = |path: &str, mode: u32| {
        let path = host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode) in [
        ("usr/bin/tool", 0o4755),
        ("usr/lib/key", 0o600),
        ("usr/local/bin/own", 0o755),
        ("var/lib/dpkg/status", 0o644),
        ("var/lib/other", 0o644),
        ("etc/os-release", 0o644),
        ("etc/shadow", 0o644),
        ("home/ann/letter", 0o644),
    ] {
        put(path, mode);
    }
    symlink("usr/bin", host.path().join("bin")).unwrap();
    copy_host(host.path(), root.path()).unwrap();
    let found = |path: &str| fs::symlink_metadata(root.path().join(path)).ok();
    for path in ["usr/bin/tool", "bin/tool", "var/lib/dpkg/status", "etc/os-release", "etc/passwd"] {
        assert!(found(path).is_some(), "{path}");
    }
    for path in ["usr/lib/key", "usr/local", "var/lib/other", "etc/shadow", "home"] {
        assert!(found(path).is_none(), "{path}");
    }
    assert_eq!(found("usr/bin/tool").unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn what_a_killed_process_left_half_made_goes_with_the_next_image() {
    let place = Place::new();
    // A process that has been here and is no more.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let folder = |pid: u32| place.data.path().join(format!("images/.new-{pid}-x"));
    let (left, made) = (folder(gone.id()), folder(1));
    for folder in [&left, &made] {
        fs::create_dir_all(folder.join("root/usr")).unwrap();
    }
    place.import("y", &tar_of(&[("file", "bin/x", "1")])).unwrap();
    assert_eq!((left.exists(), made.exists()), (false, true));
}
