//! Sandboxes from an image: a small root file system put together from this machine's own programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use async_trait::async_trait;
use sandbox::images::{Images, Kind};
use sandbox::{
    Base, Call, Collected, Error, Exits, Output, Pool, Provider, Resources, Restore, Rights, SandboxId,
    SandboxInfo, Saved, conformance,
};

use crate::host::{Host, fresh_id};

const PROGRAMS: [&str; 14] = [
    "bash", "cat", "chmod", "chown", "cut", "env", "grep", "head", "id", "ls", "mkdir", "sleep", "stat",
    "touch",
];

/// A folder with a few programs, what they are linked with, and things that an image should better not have.
fn small_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let put = |from: &Path| {
        let to = root.path().join(from.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if !to.exists() {
            fs::copy(from, to).unwrap();
        }
    };
    for folder in ["usr/bin", "etc", "tmp"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    std::os::unix::fs::symlink("usr/bin", root.path().join("bin")).unwrap();
    for program in PROGRAMS {
        let path = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(program));
        let path = path.into_iter().find(|path| path.is_file()).expect("an ordinary program");
        fs::copy(&path, root.path().join("usr/bin").join(program)).unwrap();
        let linked = Command::new("ldd").arg(&path).output().unwrap();
        for word in
            String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            put(Path::new(word));
        }
    }
    fs::write(root.path().join("etc/os-release"), "NAME=small\n").unwrap();
    // The host's file must not be written through this.
    std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/resolv.conf")).unwrap();
    root
}

fn from(image: &str) -> Resources {
    let base = Base { image: Some(image.to_owned()), ..Base::default() };
    Resources { base, ..Resources::default() }
}

/// A host that has the small image, or why it cannot use it.
fn with_image() -> Host {
    let host = Host::new();
    Images::new(host.data()).import("small:1", small_root().path()).unwrap();
    host
}

/// The same provider, all of whose sandboxes start from the small image.
struct FromImage<'a>(&'a dyn Provider);

#[async_trait]
impl Provider for FromImage<'_> {
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        let resources = Resources { base: from("small:1").base, ..resources.clone() };
        self.0.provision(id, fence, &resources).await
    }

    async fn execute(&self, call: Call) -> Result<Output, Error> {
        self.0.execute(call).await
    }

    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error> {
        self.0.cancel(id, fence, call_id).await
    }

    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error> {
        self.0.touch(id, fence).await
    }

    async fn collect_outputs(&self, id: &SandboxId, into: &Path) -> Result<Vec<Collected>, Error> {
        self.0.collect_outputs(id, into).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), Error> {
        self.0.destroy(id).await
    }

    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        self.0.list().await
    }

    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error> {
        self.0.save(id, fence, into).await
    }

    async fn keep_ready(&self, pools: &[Pool]) -> Result<(), Error> {
        self.0.keep_ready(pools).await
    }

    fn exits(&self) -> Exits {
        self.0.exits()
    }
}

#[tokio::test]
async fn sandboxes_from_an_image_keep_the_contract() {
    let host = with_image();
    conformance::suite(&FromImage(&*host.provider), "image").await;
    conformance::exits_suite(&FromImage(&*host.provider), "image").await;
    conformance::snapshots_suite(&FromImage(&*host.provider), "image").await;
    host.end().await;
}

#[tokio::test]
async fn a_snapshot_fits_on_an_image_of_the_same_content_and_not_on_another_of_the_same_name() {
    let (host, root) = (Host::new(), small_root());
    let images = Images::new(host.data());
    let import = |text: &str| {
        // As long as before and as old: only what is in it differs.
        let release = root.path().join("etc/os-release");
        fs::write(&release, text).unwrap();
        fs::File::options().write(true).open(&release).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        for kept in images.list().unwrap() {
            images.remove(&kept).unwrap();
        }
        images.import("small:1", root.path()).unwrap().digest
    };
    let digest = import("NAME=one\n");
    let sandbox = host.sandbox(from("small:1")).await;
    sandbox.bash("echo kept > file").await;
    let (folder, other) = (tempfile::tempdir().unwrap(), import("NAME=two\n"));
    assert_ne!(other, digest);
    let file = folder.path().join("snapshot");
    let saved = sandbox.provider.save(&sandbox.id, 1, &file).await.unwrap();
    assert_eq!(saved.base, format!("image small:1 {digest}"), "what it was built on, not what is there now");
    let restore = || Some(Restore { file: file.clone(), base: saved.base.clone() });
    let misfit = Resources { restore: restore(), ..from("small:1") };
    let refused = host.provider.provision(&fresh_id(), 1, &misfit).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("would be built on image small:1 {other}")), "{refused}");
    assert_eq!(import("NAME=one\n"), digest);
    let restored = host.sandbox(Resources { restore: restore(), ..from("small:1") }).await;
    assert_eq!(restored.bash("cat file /etc/os-release").await, "kept\nNAME=one");
    host.end().await;
}

#[tokio::test]
async fn a_sandbox_from_an_image_sees_the_image_and_nothing_of_the_host() {
    let host = with_image();
    let sandbox = host.sandbox(Resources { rights: Rights::Install, ..from("small:1") }).await;
    assert_eq!(
        sandbox.bash("cat /etc/os-release; id -u; ls /usr/bin | head -1; pwd").await,
        "NAME=small\n0\nbash\n/workspace"
    );
    assert_eq!(
        sandbox.bash("stat -c '%u %F' /usr/bin/bash /etc/resolv.conf").await,
        "0 regular file\n0 regular file"
    );
    assert_eq!(
        sandbox
            .bash("echo x > /usr/bin/x && echo y > /etc/y && echo z > /tmp/z && cat /usr/bin/x /etc/y")
            .await,
        "x\ny"
    );
    assert_eq!(
        sandbox.bash("grep -c nameserver /etc/resolv.conf; cat /etc/hostname; ls /dev | grep -c null").await,
        "1\nsandbox\n1"
    );
    let mounts = sandbox.bash("cat /proc/self/mountinfo").await;
    for word in [host.data().to_str().unwrap(), "images", "small", "ext4", "/home"] {
        assert!(!mounts.contains(word), "{word}: {mounts}");
    }
    let other = host.sandbox(from("small:1")).await;
    assert_eq!(
        other.bash("ls /usr/bin/x /etc/y 2>&1 | grep -c 'No such'").await,
        "2",
        "images are never written"
    );
    host.end().await;
}

#[tokio::test]
async fn an_image_whose_folders_are_links_to_the_host_is_refused() {
    let host = Host::new();
    let root = small_root();
    fs::remove_dir(root.path().join("tmp")).unwrap();
    std::os::unix::fs::symlink("/var/tmp", root.path().join("tmp")).unwrap();
    Images::new(host.data()).import("odd", root.path()).unwrap();
    let refused = host.provider.provision(&fresh_id(), 1, &from("odd")).await;
    assert!(
        matches!(refused, Err(Error::Unavailable { ref reason }) if reason.contains("/tmp")),
        "{refused:?}"
    );
    let missing = host.provider.provision(&fresh_id(), 1, &from("none")).await;
    assert!(matches!(missing, Err(Error::Refused { ref reason }) if reason.contains("none")), "{missing:?}");
    let kept = Images::new(host.data()).list().unwrap();
    assert_eq!((kept.len(), kept[0].kind, kept[0].name.as_str()), (1, Kind::Image, "odd"));
    host.end().await;
}
