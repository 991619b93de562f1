//! A container engine, of which the tests start private ones, and what their images are made from.

use crate::apt;
use crate::shell::Run;

/// Installs what is missing. Where packages cannot be installed, the tests that need them say that they were left out.
pub(crate) fn prepare(runtime: Option<&str>) -> anyhow::Result<()> {
    let packages = [("dockerd", "docker.io"), ("busybox", "busybox-static")];
    let missing: Vec<&str> =
        packages.into_iter().filter(|(program, _)| !has(program)).map(|(_, package)| package).collect();
    if !missing.is_empty() {
        apt::install(&missing)?;
    }
    match runtime {
        Some(runtime) if !has(runtime) => apt::install(&[runtime]),
        Some(_) | None => Ok(()),
    }
}

pub(crate) fn has(program: &str) -> bool {
    Run::new("sh").args(["-c", "PATH=$PATH:/usr/sbin; command -v \"$0\"", program]).works()
}
