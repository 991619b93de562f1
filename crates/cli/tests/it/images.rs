//! `posthouse images`: an operator makes images, lists them and takes them away.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::network::World;
use crate::server::posthouse;

/// Asks for the round that builds real images.
const BUILDS: &str = "POSTHOUSE_TEST_IMAGES";

async fn images(words: &[&str], data_dir: &Path) -> Output {
    posthouse().arg("images").args(words).arg("--data-dir").arg(data_dir).output().await.expect("runs")
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_image_is_imported_listed_and_removed_by_name() {
    let (data, source) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::create_dir_all(source.path().join("usr/bin")).expect("a folder");
    std::fs::write(source.path().join("usr/bin/tool"), "x").expect("a file");
    let folder = source.path().to_str().expect("text");

    let made = lines(&images(&["import", "tools:1", folder, "--json"], data.path()).await);
    assert_eq!(made[0]["name"], "tools:1");
    let again = said(&images(&["import", "tools:1", folder], data.path()).await);
    assert!(again.contains("there is an image tools:1 already"), "{again}");

    let listed = lines(&images(&["list", "--json"], data.path()).await);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["name"], &listed[0]["kind"]), (&"tools:1".into(), &"image".into()));

    // Young and unnamed, it stays.
    assert_eq!(lines(&images(&["prune", "--json"], data.path()).await).len(), 0);
    let unknown = said(&images(&["prune", "--image", "nonesuch"], data.path()).await);
    assert!(unknown.contains("there is no image nonesuch"), "{unknown}");
    let dry = images(&["prune", "--image", "tools:1", "--dry-run", "--json"], data.path()).await;
    assert_eq!(lines(&dry).len(), 1);
    assert_eq!(lines(&images(&["list", "--json"], data.path()).await).len(), 1);
    assert_eq!(lines(&images(&["prune", "--image", "tools:1", "--json"], data.path()).await).len(), 1);
    assert_eq!(lines(&images(&["list", "--json"], data.path()).await).len(), 0);
}

#[tokio::test]
async fn old_images_go_but_for_the_one_that_the_configuration_names() {
    let (data, source) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::create_dir(source.path().join("bin")).expect("a folder");
    let folder = source.path().to_str().expect("text");
    for name in ["usual", "other"] {
        lines(&images(&["import", name, folder, "--json"], data.path()).await);
    }
    std::fs::write(data.path().join("posthouse.toml"), "[images]\ndefault = \"usual\"\n").expect("a file");
    let removed = lines(&images(&["prune", "--all-images", "--unused", "0", "--json"], data.path()).await);
    assert_eq!(removed.iter().map(|line| &line["name"]).collect::<Vec<_>>(), ["other"]);
}

#[tokio::test]
async fn what_is_no_image_is_refused_with_the_reason() {
    let data = tempfile::tempdir().expect("a folder");
    let file = data.path().join("archive");
    std::fs::write(&file, "not an archive").expect("a file");
    let path = file.to_str().expect("text");
    let refused = said(&images(&["import", "x", path], data.path()).await);
    assert!(refused.contains("the image x was not made"), "{refused}");
    let refused = said(&images(&["import", "../x", path], data.path()).await);
    assert!(refused.contains("is no name for an image"), "{refused}");
    let refused = said(&images(&["build", "x", "--packages", "a;b"], data.path()).await);
    assert!(refused.contains("is no package of Debian"), "{refused}");
}

/// The long round: real tools, hundreds of megabytes. `cargo xtask images` installs the tools and runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_run_in_what_each_way_of_building_gives() {
    use std::io::Write as _;
    if std::env::var_os(BUILDS).is_none() {
        let words =
            "LEFT OUT: images: building real ones takes minutes; `cargo xtask images` as root runs it";
        let _ = writeln!(std::io::stderr(), "{words}");
        return;
    }
    let debian = "grep -c ^ID=debian /etc/os-release; ls /home; test -e /usr/bin/hello && hello";
    let ways = [
        ("mmdebstrap", "debian:mm", debian, "1\nHello, world!"),
        ("debootstrap", "debian:d", debian, "1\nHello, world!"),
        ("copy", "host", "ls /home /usr/local 2>/dev/null | grep -c own; python3 -c 'print(6 * 7)'", "0\n42"),
    ];
    let world = World::start(String::new(), 1).await;
    let data = world.data_dir().to_owned();
    for (way, name, command, expected) in ways {
        let packages: &[&str] = if way == "copy" { &[] } else { &["--packages", "hello"] };
        let made = [&["build", name, "--json", "--by", way], packages].concat();
        let made = lines(&images(&made, &data).await);
        assert!(made[0]["size_bytes"].as_u64() > Some(50 << 20), "{made:?}");
        let environment =
            json!({"name": way, "metadata": {"posthouse.image": name}, "config": {"type": "cloud"}});
        let session = world.session_in(&format!("claude-{way}"), environment, &[command]).await;
        assert_eq!(world.next(&session).await, expected, "{way}");
    }
    let listed = lines(&images(&["list", "--json"], &data).await);
    let names: Vec<&Value> = listed.iter().map(|line| &line["name"]).collect();
    assert_eq!(names, ["debian:d", "debian:mm", "host"]);
    let prune = ["prune", "--image", "debian:d", "--image", "debian:mm", "--image", "host", "--json"];
    assert_eq!(lines(&images(&prune, &data).await).len(), 3);
    let left: Vec<_> = std::fs::read_dir(data.join("images")).expect("there").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
