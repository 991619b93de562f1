//! From a repository to an archive of what a session gets: fetched into the cache with the session's own token, cloned from
//! there, checked out, packed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use protocol::resource::{Checkout, Repository};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tools::archive::{Place, pack_places};
use tools::wire::TREE;

use crate::Inner;
use crate::cache::{Held, UNKNOWN, Work};
use crate::door::Pass;
use crate::git::{self, Allowed, Git, argument};
use crate::host::Asker;
use crate::local::origin;
use crate::trouble::Trouble;

/// What is written at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Packs beyond which a repository's are made one.
const PACKS_MAX: usize = 24;
/// Objects that are named to git at once: a command line has an end.
const ARGUMENTS_MAX: usize = 10_000;

/// A repository as a session gets it.
pub(crate) struct Made {
    pub(crate) archive: PathBuf,
    /// Keeps the archive.
    _work: Work,
}

/// Fetches a repository and makes the archive of it.
pub(crate) async fn make(inner: &Inner, asker: Asker, repository: &Repository) -> Result<Made, Trouble> {
    let time_max = inner.settings.limits.time_max;
    let late = |_| Trouble::Time(time_max.as_secs());
    // First the repository, then the turn: or whoever waits for a slow repository would take the turns of all others. Each of
    // those who are waited for has a bound of its own, so waiting takes nothing of this one's time.
    let waiting = async {
        let held = inner.cache.hold(&asker.url.base()).await?;
        Ok::<_, Trouble>((held, inner.clones.acquire().await))
    };
    let (held, _turn) = timeout(time_max, waiting).await.map_err(late)??;
    // What is old goes meanwhile.
    let making = async { tokio::join!(inner.cache.prune(), made(inner, held, asker, repository)).1 };
    timeout(time_max, making).await.map_err(late)?
}

async fn made(inner: &Inner, held: Held, asker: Asker, repository: &Repository) -> Result<Made, Trouble> {
    let (resource, url) = (asker.resource.clone(), asker.url.clone());
    let pass = inner.door.pass(asker).await?;
    let was_kept = held.git.join("HEAD").exists();
    let attempt = async |held: Held| {
        let work = inner.cache.work()?;
        let maker = Maker { inner, work: &work.path, pass: &pass, checkout: repository.checkout.as_ref() };
        let tree = maker.tree(held, &origin(&resource, &url)).await.map_err(|trouble| {
            match (trouble, pass.fault()) {
                // Git only says that it got no answer.
                (Trouble::Git(_), Some(fault)) => Trouble::Host(fault),
                (trouble, _) => trouble,
            }
        })?;
        let archive = work.path.join("archive");
        pack_tree(tree, archive.clone()).await?;
        Ok(Made { archive, _work: work })
    };
    match attempt(held).await {
        // What is kept may have been broken, by a machine that died: then no session would ever get it again.
        Err(Trouble::Git(error)) if was_kept => {
            tracing::warn!(%error, repository = %url.base(), "a kept repository is of no use and is fetched anew");
            let held = inner.cache.hold(&url.base()).await?;
            std::fs::remove_dir_all(&held.git)?;
            attempt(held).await
        }
        made => made,
    }
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
    /// A commit that is there.
    Commit(String),
    /// A commit to which no branch leads, by its whole name. It is asked for once there is a clone.
    Apart(String),
    /// Nothing: the repository is empty.
    Nothing,
}

impl Maker<'_> {
    fn git(&self) -> Git<'_> {
        Git { program: &self.inner.settings.git, folder: self.work }
    }

    /// Makes what the session gets, and gives its folder. The cache is held no longer than it is needed.
    async fn tree(&self, held: Held, origin: &str) -> Result<PathBuf, Trouble> {
        let head = self.fetch(&held).await?;
        let linked = self.link(&held).await?;
        drop(held);
        self.clone(&linked, &head, origin).await
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
        held.sweep().await?;
        if !held.git.join("HEAD").exists() {
            // What a killed server left.
            let _ = std::fs::remove_dir_all(&held.git);
            git.run(
                Allowed::default(),
                [&"init".into(), &"--bare".into(), &"--quiet".into(), &argument(&held.git)],
            )
            .await?;
        }
        let before = held.remember(cache.leads().await?)?;
        // Earlier servers kept commits so that are of no branch.
        let _ = std::fs::remove_dir_all(held.git.join("refs/posthouse"));
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
        if fetched.is_err() && self.pass.fault().is_none() {
            held.doubt()?;
        }
        let head = String::from_utf8_lossy(&head?).into_owned();
        fetched?;
        cache.tidy(&before).await?;
        held.forget()?;
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
            Some(Checkout::Commit { sha }) => match cache.named(sha).await {
                Some(commit) => Ok(Head::Commit(commit)),
                // Some hosts give it all the same, if all of its name is known.
                None if matches!(sha.len(), 40 | 64) => Ok(Head::Apart(sha.clone())),
                None => Err(missing(sha)),
            },
        }
    }

    /// What was fetched, as a repository of this session alone, of linked packs.
    async fn link(&self, held: &Held) -> Result<PathBuf, Trouble> {
        let linked = self.work.join("git");
        let args = ["clone", "--quiet", "--bare", "--local", "--no-recurse-submodules", "--"];
        let places = [argument(&held.git), argument(&linked)];
        let args = args.into_iter().map(std::ffi::OsString::from).chain(places);
        self.git().run(Allowed { files: true, ..Allowed::default() }, args).await?;
        Ok(linked)
    }

    /// Asks for a commit to which no branch or tag leads. Only the session's own clone gets it: nobody would notice when it
    /// is taken back, so in the cache it would be for ever, and for everybody.
    async fn fetch_apart(&self, own: &Cloned<'_>, sha: &str) -> Result<(), Trouble> {
        let (header, url) = (self.pass.header(), self.pass.url());
        let file_bytes_max = Some(self.inner.settings.limits.fetch_bytes_max);
        let over_http = Allowed { header: Some(&header), file_bytes_max, ..Allowed::default() };
        let args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"];
        let fetched = own.run(over_http, args.into_iter().chain(["--", url.as_str(), sha])).await;
        match (fetched, self.pass.fault()) {
            (Ok(_), _) => {}
            (Err(_), Some(fault)) => return Err(Trouble::Host(fault)),
            (Err(_), None) => return Err(missing(sha)),
        }
        // What has that name may be a tag, or a file.
        match own.run(Allowed::default(), ["cat-file", "-t", sha]).await?.as_slice() {
            b"commit\n" => Ok(()),
            _ => Err(missing(sha)),
        }
    }

    /// Makes the session's own clone, and gives its folder.
    async fn clone(&self, linked: &Path, head: &Head, origin: &str) -> Result<PathBuf, Trouble> {
        let limits = &self.inner.settings.limits;
        let (git, tree) = (self.git(), self.work.join("tree"));
        let source = linked.to_owned();
        let is_large =
            spawn_blocking(move || crate::cache::size(&source)).await.unwrap_or(0) > limits.history_bytes_max;
        let from_files = Allowed { files: true, ..Allowed::default() };
        let mut args: Vec<std::ffi::OsString> =
            ["clone", "--quiet", "--no-checkout", "--no-recurse-submodules"].map(Into::into).into();
        let branch = match head {
            Head::Branch(branch) => Some(branch),
            Head::Commit(_) | Head::Apart(_) | Head::Nothing => None,
        };
        if let Some(branch) = branch {
            args.extend(["--branch".into(), branch.into()]);
        }
        let mut source = argument(linked);
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
        if let Head::Apart(sha) = head {
            self.fetch_apart(&own, sha).await?;
        }
        let commit = match head {
            Head::Branch(_) => "HEAD",
            Head::Commit(commit) | Head::Apart(commit) => commit.as_str(),
            Head::Nothing => return Ok(tree),
        };
        self.check_size(&own, commit).await?;
        let write = Allowed { file_bytes_max: Some(limits.tree_bytes_max), ..Allowed::default() };
        match head {
            Head::Branch(_) | Head::Nothing => own.run(write, ["reset", "--quiet", "--hard"]).await?,
            Head::Commit(commit) | Head::Apart(commit) => {
                // A branch may have the name of a commit, but not this one.
                let commit = format!("{commit}^0");
                own.run(write, ["checkout", "--quiet", "--force", "--detach", &commit]).await?
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

    /// The commit that a name leads to.
    async fn commit(&self, name: &str) -> Option<String> {
        let name = format!("{name}^{{commit}}");
        let args = ["rev-parse", "--quiet", "--verify", "--end-of-options", &name];
        let found = self.run(Allowed::default(), args).await.ok()?;
        let found = String::from_utf8(found).ok()?.trim().to_owned();
        (!found.is_empty()).then_some(found)
    }

    /// The only commit whose own name begins so. A branch may be called like that, which says nothing.
    async fn named(&self, sha: &str) -> Option<String> {
        let objects =
            self.run(Allowed::default(), ["rev-parse", &format!("--disambiguate={sha}")]).await.ok()?;
        let objects = String::from_utf8(objects).ok()?;
        let args = ["rev-list", "--no-walk", "--end-of-options"].into_iter().chain(objects.lines());
        let commits = String::from_utf8(self.run(Allowed::default(), args).await.ok()?).ok()?;
        // A tag of that name stands for another commit.
        let mut named = commits.lines().filter(|commit| commit.starts_with(sha));
        named.next().filter(|_| named.next().is_none()).map(str::to_owned)
    }

    /// What its branches and tags, and whatever else, lead to.
    async fn leads(&self) -> Result<BTreeSet<String>, git::Error> {
        let listed = self.run(Allowed::default(), ["for-each-ref", "--format=%(objectname)"]).await?;
        Ok(String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect())
    }

    /// Removes what nothing leads to any more, if there may be such, and keeps the packs few.
    async fn tidy(&self, before: &BTreeSet<String>) -> Result<(), git::Error> {
        let after = self.leads().await?;
        let mut is_lost = before.contains(UNKNOWN);
        let gone = before.difference(&after).map(String::as_str).filter(|name| *name != UNKNOWN);
        let gone: Vec<&str> = gone.collect();
        for gone in gone.chunks(ARGUMENTS_MAX) {
            let args = ["rev-list", "--objects", "--max-count=1"].into_iter().chain(gone.iter().copied());
            let args = args.chain(["--not", "--branches", "--tags"]);
            // What is not there any more cannot be asked about.
            is_lost |= !self.run(Allowed::default(), args).await.is_ok_and(|alone| alone.is_empty());
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

fn missing(sha: &str) -> Trouble {
    Trouble::Checkout(format!("commit `{sha}`"))
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
