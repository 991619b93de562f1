//! Packages over an image, installed in a builder through the real proxy from the real registry, and kept by the engine.

use sandbox::images::Images;
use sandbox::{Base, Error, Manager, Packages, Resources, Restore};
use serde_json::json;

use super::{engine, is_walled_in, left_out};
use crate::door::{Door, registries};
use crate::host::{Host, call, eventually, fresh_id, text};
use crate::packages::unreachable;
use testkit::engine::RUNTIME;

fn pip(packages: &[&str]) -> Base {
    let pip = packages.iter().map(|package| (*package).to_owned()).collect();
    Base { packages: Packages { pip, ..Packages::default() }, ..Base::default() }
}

/// A server whose builders reach registries; `None`, and told, where that cannot be tried.
fn host(test: &str) -> Option<Host> {
    let engine = engine(test)?;
    if is_walled_in() {
        left_out(test, &format!("{RUNTIME} gives no sockets away"));
        return None;
    }
    if let Some(why) = unreachable("https://pypi.org/simple/six/") {
        left_out(test, &why);
        return None;
    }
    Some(super::host(engine).with_engine(|settings| settings.registries = Some(registries())))
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_installed_once_over_an_image_and_found_by_unprivileged_containers() {
    let Some(host) = host("packages_are_installed_once_over_an_image_and_found_by_unprivileged_containers")
    else {
        return;
    };
    let _door = Door::open(&host);
    let base = pip(&["six==1.16.0"]);
    let resources = Resources { base: base.clone(), ..Resources::default() };
    let early = host.provider.provision(&fresh_id(), 1, &resources).await;
    assert!(matches!(early, Err(Error::Unprepared {})), "{early:?}");
    let (heard, other) = (std::sync::Mutex::new(Vec::new()), host.another());
    let hear = |line: &str| heard.lock().unwrap().push(line.to_owned());
    let (one, two) = tokio::join!(host.provider.prepare(&base, &hear), other.prepare(&base, &|_| {}));
    one.unwrap();
    two.unwrap();
    let heard = std::mem::take(&mut *heard.lock().unwrap());
    assert!(heard.iter().any(|line| line.contains("installs") || line.contains("waiting")), "{heard:?}");
    assert_eq!(host.layers().len(), 1, "{:?}", host.layers());
    assert_eq!(host.containers(), [""; 0], "builders are gone");

    let sandbox = host.sandbox(resources.clone()).await;
    let look = "python3 -c 'import six; print(six.__version__)'; id -u | wc -c; grep CapEff /proc/self/status; \
                echo ${http_proxy:-none}; ls /tmp | wc -l; touch /usr/x 2>&1 | grep -o 'Read-only file system'";
    let said = sandbox.bash(look).await;
    assert_eq!(said, "1.16.0\n11\nCapEff:\t0000000000000000\nnone\n0\nRead-only file system");
    // What is installed belongs to a snapshot's base, not to the snapshot.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    sandbox.bash("echo kept > kept").await;
    let saved = host.provider.save(&sandbox.id, 1, &file).await.unwrap();
    let restore = Restore { file, base: saved.base };
    let restored = host.sandbox(Resources { restore: Some(restore), ..resources.clone() }).await;
    assert_eq!(restored.bash("cat kept; python3 -c 'import six'").await, "kept");

    // Listed and pruned like every layer; the engine's part goes when nobody runs on it any more.
    let images = Images::new(host.data());
    let kept = images.list().unwrap();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].size_bytes > 10_000, "what the engine keeps counts: {kept:?}");
    images.remove(&kept[0]).unwrap();
    let gone = host.provider.provision(&fresh_id(), 1, &resources).await;
    assert!(matches!(gone, Err(Error::Unprepared {})), "{gone:?}");
    host.provider.list().await.unwrap();
    assert_eq!(host.layers().len(), 1, "containers run on it");
    for sandbox in [&sandbox, &restored] {
        host.provider.destroy(&sandbox.id).await.unwrap();
    }
    host.provider.list().await.unwrap();
    assert_eq!(host.layers(), [""; 0]);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_that_a_builder_cannot_install_is_named_and_nothing_is_kept() {
    let Some(host) = host("a_package_that_a_builder_cannot_install_is_named_and_nothing_is_kept") else {
        return;
    };
    let _door = Door::open(&host);
    let odd = host.provider.prepare(&pip(&["six", "--index-url=x"]), &|_| {}).await;
    assert!(
        matches!(&odd, Err(Error::Packages { package: Some(odd), .. }) if odd == "--index-url=x"),
        "{odd:?}"
    );
    let missing = pip(&["six", "posthouse-no-such-package"]);
    let failed = host.provider.prepare(&missing, &|_| {}).await;
    let Err(Error::Packages { manager: Manager::Pip, package, lines }) = failed else { panic!("{failed:?}") };
    assert_eq!(package.as_deref(), Some("posthouse-no-such-package"));
    assert!(lines.iter().any(|line| line.contains("No matching distribution")), "{lines:?}");
    assert_eq!((host.layers(), host.containers()), (vec![], vec![]));
    assert_eq!(Images::new(host.data()).list().unwrap().len(), 0);
    // No manager: said by the shell, and no layer either.
    let base = Base {
        packages: Packages { gem: vec!["rake".to_owned()], ..Packages::default() },
        ..Base::default()
    };
    let failed = host.provider.prepare(&base, &|_| {}).await;
    assert!(matches!(&failed, Err(Error::Packages { manager: Manager::Gem, .. })), "{failed:?}");
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_reaches_registries_and_is_root_of_nothing_else() {
    let Some(host) = host("a_builder_reaches_registries_and_is_root_of_nothing_else") else { return };
    let _door = Door::open(&host);
    let base = pip(&["six==1.16.0"]);
    let preparing = host.provider.prepare(&base, &|_| {});
    let looking = async {
        // It is listed nowhere, and the sweep of a listing leaves it alone.
        let name = loop {
            assert_eq!(host.provider.list().await.unwrap(), []);
            match host.containers().first() {
                Some(name) => break name.clone(),
                None => tokio::task::yield_now().await,
            }
        };
        let id = name.split_once("builder-").map(|(_, rest)| format!("builder-{rest}")).unwrap();
        let id = sandbox::SandboxId::parse(&id).unwrap();
        let look = r#"id -u; grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status | cut -f 2; ls /sys | wc -l; (echo x > /proc/sys/kernel/core_pattern) 2>&1 | grep -c Read-only; python3 -c 'import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.mount(b"x", b"/tmp", b"tmpfs", 0, None), ctypes.get_errno())'; python3 -c 'import socket; print([n for _, n in socket.if_nameindex()])'"#;
        loop {
            // It is there before it answers, and this call waits for the managers, or the other way round.
            let mut asked = call(&id, "bash", json!({"command": look}));
            asked.timeout = std::time::Duration::from_secs(120);
            match host.provider.execute(asked).await {
                Ok(output) => break text(&output),
                Err(Error::Busy { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let (prepared, said) = tokio::join!(preparing, looking);
    prepared.unwrap();
    assert_eq!(said, "0\n00000000000000fb\n00000000000000fb\n1\n0\n1\n-1 1\n['lo']",);
    host.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_was_given_up_is_cleared_away_and_one_at_work_is_not() {
    let Some(engine) = engine("a_builder_that_was_given_up_is_cleared_away_and_one_at_work_is_not") else {
        return;
    };
    let host = super::host(engine).with_engine(|settings| settings.registries = Some(registries()));
    assert_eq!(host.provider.list().await.unwrap(), []);
    let base = pip(&["posthouse-no-such-package"]);
    let server = host.another();
    // Without a door nothing comes, and nothing is refused.
    let preparing = tokio::spawn(async move { server.prepare(&base, &|_| {}).await });
    eventually("a builder is at work", || !host.family().is_empty()).await;
    host.provider.tidy().await.unwrap();
    assert_eq!((host.provider.list().await.unwrap(), host.containers().len()), (vec![], 1));
    preparing.abort();
    assert!(preparing.await.unwrap_err().is_cancelled());
    host.another().tidy().await.unwrap();
    assert_eq!(host.provider.list().await.unwrap(), []);
    assert_eq!(host.containers(), [""; 0]);
    eventually("its processes are gone", || host.family().is_empty()).await;
    host.end().await;
}
