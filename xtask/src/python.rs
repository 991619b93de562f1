//! The virtual environment with the official Python SDK.

use std::path::PathBuf;

use anyhow::bail;

use crate::shell::{Run, root};

const REQUIREMENTS: &str = "tests/sdk/requirements.txt";

/// Makes the environment if it is not there, and gives its interpreter.
pub(crate) fn prepare() -> anyhow::Result<PathBuf> {
    let venv = root().join(".venv");
    let python = venv.join("bin/python");
    if !Run::new(&python).args(["-m", "pip", "--version"]).works() {
        if !Run::new("python3").args(["-c", "import venv, ensurepip"]).works() {
            install_venv()?;
        }
        Run::new("python3").args(["-m", "venv", "--clear"]).args([&venv]).run()?;
    }
    Run::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS])
        .run()?;
    Ok(python)
}

fn install_venv() -> anyhow::Result<()> {
    if !Run::new("apt-get").args(["--version"]).works() {
        bail!("python3 with its venv module is needed for the SDK's tests; install it and try again");
    }
    let sudo: &[&str] =
        if Run::new("sh").args(["-c", "test $(id -u) = 0"]).works() { &[] } else { &["sudo"] };
    let apt = |args: &[&str]| {
        let words: Vec<&str> = sudo.iter().chain(&["apt-get"]).chain(args).copied().collect();
        Run::new(words[0]).args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive").run()
    };
    apt(&["update", "-qq"])?;
    apt(&["install", "-y", "-qq", "python3", "python3-venv"])
}
