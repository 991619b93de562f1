//! From a repository to an archive of what a session gets: fetched into the cache with the session's own token, cloned from
//! there, checked out, packed.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use protocol::resource::{Checkout, Repository};
use tokio::task::spawn_blocking;
use tools::archive::{Place, pack_places};
use tools::wire::TREE;

use crate::Inner;
use crate::cache::{Held, Work};
use crate::door::Pass;
use crate::git::{self, Allowed, Git, argument};
use crate::host::Asker;
use crate::local::origin;
use crate::trouble::Trouble;

/// What is written at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Packs beyond which a repository's are made one.
const PACKS_MAX: usize = 24;

/// A repository as a session gets it.
pub(crate) struct Made {
    pub(crate) archive: PathBuf,
    /// Keeps the archive.
    _work: Work,
}

/// Fetches a repository and makes the archive of it.
pub(crate) async fn make(inner: &Inner, asker: Asker, repository: &Repository) -> Result<Made, Trouble> {
    let time_max = inner.settings.limits.time_max;
    let making = async {
        let _turn = inner.clones.acquire().await;
        // What is old goes meanwhile.
        let ((), made) = tokio::join!(inner.cache.prune(), made(inner, asker, repository));
        made
    };
    let made = tokio::time::timeout(time_max, making).await;
    made.unwrap_or_else(|_| Err(Trouble::Time(time_max.as_secs())))
}

async fn made(inner: &Inner, asker: Asker, repository: &Repository) -> Result<Made, Trouble> {
    let (resource, url) = (asker.resource.clone(), asker.url.clone());
    let pass = inner.door.pass(asker).await?;
    let held = inner.cache.hold(&url.base()).await?;
    let work = inner.cache.work()?;
    let maker = Maker { inner, work: &work.path, pass: &pass, checkout: repository.checkout.as_ref() };
    let fetched = maker.fetch(&held).await;
    let head = fetched.map_err(|trouble| match (trouble, pass.fault()) {
        // Git only says that it got no answer.
        (Trouble::Git(_), Some(fault)) => Trouble::Host(fault),
        (trouble, _) => trouble,
    })?;
    let held = held.share().await?;
    let tree = maker.clone(&held, &head, &origin(&resource, &url)).await?;
    drop(held);
    let archive = work.path.join("archive");
    pack_tree(tree, archive.clone()).await?;
    Ok(Made { archive, _work: work })
}

struct Maker<'a> {
    inner: &'a Inner,
    work: &'a Path,
    pass: &'a Pass,
    checkout: Option<&'a Checkout>,
}

/// What is checked out.
enum Head {
    /// A branch that is there.
    Branch(String),
    /// A commit that is there, and the branch that is named where there is none.
    Commit(String),
    /// Nothing: the repository is empty.
    Nothing,
}

impl Maker<'_> {
    fn git(&self) -> Git<'_> {
        Git { program: &self.inner.settings.git, folder: self.work }
    }

    /// Brings the cache up to date, and finds what is to be checked out. The host is asked with the session's own token, and
    /// nothing of the cache is used if it does not answer.
    async fn fetch(&self, held: &Held) -> Result<Head, Trouble> {
        let limits = &self.inner.settings.limits;
        let header = self.pass.header();
        let over_http = Allowed {
            header: Some(&header),
            file_bytes_max: Some(limits.fetch_bytes_max),
            ..Allowed::default()
        };
        let (git, cache, url) = (self.git(), Cached { git: self.git(), at: &held.git }, self.pass.url());
        if !held.git.join("HEAD").exists() {
            // What a killed server left.
            let _ = std::fs::remove_dir_all(&held.git);
            git.run(
                Allowed::default(),
                [&"init".into(), &"--bare".into(), &"--quiet".into(), &argument(&held.git)],
            )
            .await?;
        }
        let before = cache.commits().await?;
        let fetch = cache.run(
            over_http,
            [
                "fetch",
                "--quiet",
                "--prune",
                "--force",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                url.as_str(),
                "+refs/heads/*:refs/heads/*",
                "+refs/tags/*:refs/tags/*",
            ],
        );
        let (head, fetched) =
            tokio::join!(git.run(over_http, ["ls-remote", "--symref", "--", url.as_str(), "HEAD"]), fetch);
        let head = String::from_utf8_lossy(&head?).into_owned();
        fetched?;
        cache.tidy(&before).await?;
        let default =
            head.lines().find_map(|line| line.strip_prefix("ref: refs/heads/")?.strip_suffix("\tHEAD"));
        if let Some(default) = default {
            cache.run(Allowed::default(), ["symbolic-ref", "HEAD", &format!("refs/heads/{default}")]).await?;
        }
        match self.checkout {
            None => match default {
                Some(branch) if cache.has(&format!("refs/heads/{branch}")).await => {
                    Ok(Head::Branch(branch.to_owned()))
                }
                // Of a host that says a commit and no branch.
                Some(_) | None => match head.lines().find_map(|line| line.strip_suffix("\tHEAD")) {
                    Some(commit) if cache.has(commit).await => Ok(Head::Commit(commit.to_owned())),
                    Some(_) | None => Ok(Head::Nothing),
                },
            },
            Some(Checkout::Branch { name }) => match cache.has(&format!("refs/heads/{name}")).await {
                true => Ok(Head::Branch(name.clone())),
                false => Err(Trouble::Checkout(format!("branch `{name}`"))),
            },
            Some(Checkout::Commit { sha }) => {
                if let Some(commit) = cache.commit(sha).await {
                    return Ok(Head::Commit(commit));
                }
                let missing = || Trouble::Checkout(format!("commit `{sha}`"));
                // No branch leads there. Some hosts give it all the same, if all of its name is known.
                if !matches!(sha.len(), 40 | 64) {
                    return Err(missing());
                }
                let keep = format!("+{sha}:refs/posthouse/{sha}");
                let args =
                    ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", url.as_str(), keep.as_str()];
                let fetched = cache.run(over_http, args).await;
                match (fetched, self.pass.fault()) {
                    (Ok(_), _) => cache.commit(sha).await.map(Head::Commit).ok_or_else(missing),
                    (Err(_), Some(fault)) => Err(Trouble::Host(fault)),
                    (Err(_), None) => Err(missing()),
                }
            }
        }
    }

    /// Makes the session's own clone, and gives its folder.
    async fn clone(&self, held: &Held, head: &Head, origin: &str) -> Result<PathBuf, Trouble> {
        let limits = &self.inner.settings.limits;
        let (git, tree) = (self.git(), self.work.join("tree"));
        let source = held.git.clone();
        let is_large =
            spawn_blocking(move || crate::cache::size(&source)).await.unwrap_or(0) > limits.history_bytes_max;
        let from_files = Allowed { files: true, ..Allowed::default() };
        let mut args: Vec<std::ffi::OsString> =
            ["clone", "--quiet", "--no-checkout", "--no-recurse-submodules"].map(Into::into).into();
        let branch = match head {
            Head::Branch(branch) => Some(branch),
            Head::Commit(_) | Head::Nothing => None,
        };
        if let Some(branch) = branch {
            args.extend(["--branch".into(), branch.into()]);
        }
        let mut source = argument(&held.git);
        // What is only named by its commit may be anywhere in the history.
        if is_large && branch.is_some() {
            args.extend(["--depth".into(), limits.history_commits.to_string().into(), "--no-tags".into()]);
            let mut address = std::ffi::OsString::from("file://");
            address.push(source);
            source = address;
        } else {
            // Packs are linked, not copied.
            args.push("--local".into());
        }
        args.extend(["--".into(), source, argument(&tree)]);
        git.run(from_files, args).await?;
        let own = Cloned { git, at: &tree };
        own.run(Allowed::default(), ["remote", "set-url", "origin", origin]).await?;
        if is_large && branch.is_some() {
            // As if it had been cloned from there: all branches are fetched.
            let all = "+refs/heads/*:refs/remotes/origin/*";
            own.run(Allowed::default(), ["config", "remote.origin.fetch", all]).await?;
        }
        let commit = match head {
            Head::Branch(_) => "HEAD",
            Head::Commit(commit) => commit.as_str(),
            Head::Nothing => return Ok(tree),
        };
        self.check_size(&own, commit).await?;
        let write = Allowed { file_bytes_max: Some(limits.tree_bytes_max), ..Allowed::default() };
        match head {
            Head::Branch(_) | Head::Nothing => own.run(write, ["reset", "--quiet", "--hard"]).await?,
            Head::Commit(commit) => {
                own.run(write, ["checkout", "--quiet", "--force", "--detach", commit]).await?
            }
        };
        Ok(tree)
    }

    /// A few bytes of a pack may be a file of many gigabytes, so what a checkout takes is looked at before.
    async fn check_size(&self, own: &Cloned<'_>, commit: &str) -> Result<(), Trouble> {
        let limits = &self.inner.settings.limits;
        let listed = own.run(Allowed::default(), ["ls-tree", "-r", "-l", "-z", "--full-tree", commit]).await;
        let listed = match listed {
            Err(git::Error::TooMuch) => return Err(Trouble::Size("it has too many files".to_owned())),
            other => other?,
        };
        let (mut files, mut bytes) = (0_u64, 0_u64);
        for entry in listed.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
            // Mode, type, object and size, then a tab and the path. What has no size is of a submodule.
            let facts = entry.split(|byte| *byte == b'\t').next().unwrap_or_default();
            let size =
                std::str::from_utf8(facts).ok().and_then(|facts| facts.split_ascii_whitespace().nth(3));
            files += 1;
            bytes = bytes.saturating_add(size.and_then(|size| size.parse().ok()).unwrap_or(0));
        }
        if files > limits.tree_files_max {
            return Err(Trouble::Size(format!("{files} files, where {} are allowed", limits.tree_files_max)));
        }
        if bytes > limits.tree_bytes_max {
            return Err(Trouble::Size(format!(
                "{bytes} bytes of files, where {} are allowed",
                limits.tree_bytes_max
            )));
        }
        Ok(())
    }
}

/// Git over the kept repository.
struct Cached<'a> {
    git: Git<'a>,
    at: &'a Path,
}

impl Cached<'_> {
    async fn run<'s>(
        &self,
        allowed: Allowed<'_>,
        args: impl IntoIterator<Item = &'s str>,
    ) -> Result<Vec<u8>, git::Error> {
        let mut all: Vec<std::ffi::OsString> = vec!["--git-dir".into(), argument(self.at)];
        all.extend(args.into_iter().map(Into::into));
        self.git.run(allowed, all).await
    }

    async fn has(&self, name: &str) -> bool {
        self.commit(name).await.is_some()
    }

    /// The whole name of a commit.
    async fn commit(&self, name: &str) -> Option<String> {
        let name = format!("{name}^{{commit}}");
        let args = ["rev-parse", "--quiet", "--verify", "--end-of-options", &name];
        let found = self.run(Allowed::default(), args).await.ok()?;
        let found = String::from_utf8(found).ok()?.trim().to_owned();
        (!found.is_empty()).then_some(found)
    }

    /// What its branches and tags lead to.
    async fn commits(&self) -> Result<Vec<String>, git::Error> {
        let listed = self.run(Allowed::default(), ["for-each-ref", "--format=%(objectname)"]).await?;
        let mut commits: Vec<String> = String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect();
        commits.sort();
        commits.dedup();
        Ok(commits)
    }

    /// Removes what nothing leads to any more, if there may be such, and keeps the packs few.
    async fn tidy(&self, before: &[String]) -> Result<(), git::Error> {
        let after = self.commits().await?;
        let mut is_lost = false;
        for gone in before.iter().filter(|commit| after.binary_search(commit).is_err()) {
            let args = ["for-each-ref", "--count=1", "--contains", gone.as_str(), "--format=%(refname)"];
            // Of a tag on what is no commit that cannot be said.
            let leads = self.run(Allowed::default(), args).await.unwrap_or_default();
            if leads.is_empty() {
                is_lost = true;
                break;
            }
        }
        let packs = std::fs::read_dir(self.at.join("objects/pack")).map_or(0, Iterator::count) / 2;
        if is_lost {
            self.run(Allowed::default(), ["repack", "-a", "-d", "--quiet"]).await?;
            self.run(Allowed::default(), ["prune", "--expire=now"]).await?;
        } else if packs > PACKS_MAX {
            self.run(Allowed::default(), ["repack", "-a", "-d", "--quiet"]).await?;
        }
        Ok(())
    }
}

/// Git in a session's clone.
struct Cloned<'a> {
    git: Git<'a>,
    at: &'a Path,
}

impl Cloned<'_> {
    async fn run<'s>(
        &self,
        allowed: Allowed<'_>,
        args: impl IntoIterator<Item = &'s str>,
    ) -> Result<Vec<u8>, git::Error> {
        let mut all: Vec<std::ffi::OsString> = vec!["-C".into(), argument(self.at)];
        all.extend(args.into_iter().map(Into::into));
        self.git.run(allowed, all).await
    }
}

async fn pack_tree(tree: PathBuf, archive: PathBuf) -> Result<(), Trouble> {
    let packing = spawn_blocking(move || {
        let root = File::open(&tree)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(&archive)?);
        let place = Place { name: TREE, root: root.as_fd() };
        pack_places(&[place], &mut file).map_err(std::io::Error::other)?;
        file.flush()?;
        std::fs::remove_dir_all(&tree)
    });
    packing.await.map_err(std::io::Error::other)??;
    Ok(())
}
