//! A container engine, of which the tests start private ones, and what their images are made from.

use crate::apt;
use crate::shell::Run;

/// Which engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    #[default]
    Docker,
    Podman,
}

/// Installs what is missing. Where packages cannot be installed, the tests that need them say that they were left out.
pub(crate) fn prepare(engine: Engine, runtime: Option<&str>) -> anyhow::Result<()> {
    let engine = match engine {
        Engine::Docker => ("dockerd", "docker.io"),
        Engine::Podman => ("podman", "podman"),
    };
    let packages = [engine, ("busybox", "busybox-static")];
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
