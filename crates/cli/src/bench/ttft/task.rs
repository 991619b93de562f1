//! The set-up of a real task, offline: the clone of a repository from the local disk and a Python virtual
//! environment. Run inside a sandbox, by whoever has it run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// Where a sandbox sees the repository, read-only.
pub(super) const INSIDE: &str = "/mnt/repository";

/// The commands. The folder's owner is not who runs git, hence the exception.
pub(super) const SET_UP: &str = "git config --global --add safe.directory '*' \
    && git clone --quiet /mnt/repository /workspace/repository \
    && python3 -m venv /workspace/venv && /workspace/venv/bin/python -c 'print(\"ready\")'";
/// The last thing that they print.
pub(super) const READY: &str = "ready";

/// The size of one generated file.
const FILE_BYTES: usize = 50 << 10;
const FILES_IN_A_FOLDER: usize = 25;

/// Makes a repository whose files have that many bytes in all: text that compresses about as source code does, in
/// one pack. Gives the size of the pack.
pub(super) fn make_repository(at: &Path, size_bytes: usize, seed: u64) -> anyhow::Result<u64> {
    let mut random = SmallRng::seed_from_u64(seed);
    let words: Vec<String> = (0..4_096).map(|_| word(&mut random)).collect();
    for number in 0..size_bytes.div_ceil(FILE_BYTES) {
        let folder = at.join(format!("source/part_{:03}", number / FILES_IN_A_FOLDER));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("file_{number:05}.txt")), text(&mut random, &words))?;
    }
    git(at, &["init", "--quiet"])?;
    git(at, &["add", "--all"])?;
    git(at, &["commit", "--quiet", "--message", "Generated for a benchmark"])?;
    // As a server would hand it out. Looking for similar files would take long and find none.
    git(at, &["-c", "pack.window=0", "repack", "-a", "-d", "--quiet"])?;
    let packs = fs::read_dir(at.join(".git/objects/pack"))?;
    let sizes = packs.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum::<std::io::Result<u64>>().context("the pack cannot be looked at")
}

fn word(random: &mut SmallRng) -> String {
    let length = random.random_range(3..12);
    (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

fn text(random: &mut SmallRng, words: &[String]) -> String {
    let mut text = String::with_capacity(FILE_BYTES + 128);
    while text.len() < FILE_BYTES {
        let indent = random.random_range(0..4) * 4;
        let _ = write!(text, "{:indent$}", "");
        for _ in 0..random.random_range(3..9) {
            text.push_str(&words[random.random_range(0..words.len())]);
            text.push(' ');
        }
        text.push('\n');
    }
    text.truncate(FILE_BYTES);
    text
}

/// Runs git as nobody in particular, whatever this machine's own settings say.
fn git(at: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("git")
        .args(arguments)
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Posthouse bench")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "bench@posthouse.invalid")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("git cannot be started")?;
    anyhow::ensure!(status.success(), "git {} failed", arguments.join(" "));
    Ok(())
}
