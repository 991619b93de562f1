//! What an engine's containers hold off, guard by guard.

use super::engine::{Engine, Ids, Kind};
use super::provider::Docker;
use crate::doctor::{self, Guard, Report};
use crate::provider::Error;

/// Guard: an engine that answers.
const ENGINE: &str = "container engine";
/// Guard: the image from which sandboxes are made.
const IMAGE: &str = "image";
/// Guard: the runtime is one that the engine knows.
const RUNTIME: &str = "runtime";

impl Docker {
    /// What this machine's engine gives. An engine that cannot be reached is part of the answer, not an error.
    pub async fn report(&self) -> Result<Report, Error> {
        let engine = match self.engine().await {
            Ok(engine) => engine,
            Err(error) => {
                let how = "start the engine, or name its socket with [sandbox.docker] host";
                return Ok(Report::from_guards(
                    vec![missing(ENGINE, true, error.to_string(), how)],
                    Vec::new(),
                ));
            }
        };
        let mut guards = vec![held(ENGINE, true, describe(&engine))];
        guards.extend(self.choices(&engine).await?);
        guards.extend(bounds(&engine));
        guards.extend(walls(&engine));
        Ok(Report::from_guards(guards, Vec::new()))
    }

    async fn choices(&self, engine: &Engine) -> Result<[Guard; 2], Error> {
        let settings = self.settings();
        let image = match engine.image(&settings.image).await? {
            Some(_) => held(IMAGE, true, format!("{} is here", settings.image)),
            None => missing(
                IMAGE,
                true,
                format!("{} is not on this machine", settings.image),
                &format!("docker pull {}", settings.image),
            ),
        };
        let default = engine.info.default_runtime.clone().unwrap_or_default();
        let known = |name: &str| engine.info.runtimes.as_ref().is_none_or(|all| all.contains_key(name));
        let runtime = match &settings.runtime {
            None => held(RUNTIME, true, format!("{default}, the engine's default")),
            Some(name) if known(name) => held(RUNTIME, true, name.clone()),
            Some(name) => missing(
                RUNTIME,
                true,
                format!("the engine knows no runtime `{name}`"),
                "name it under `runtimes` in the engine's daemon.json",
            ),
        };
        Ok([image, runtime])
    }
}

fn describe(engine: &Engine) -> String {
    let name = match engine.kind {
        Kind::Docker => "Docker",
        Kind::Podman => "Podman",
    };
    let version = engine.info.server_version.as_deref().unwrap_or("of an unknown version");
    let cgroups =
        engine.info.cgroup_version.as_ref().map_or(String::new(), |version| format!(", cgroups v{version}"));
    format!("{name} {version}{cgroups}")
}

fn bounds(engine: &Engine) -> [Guard; 4] {
    let guard = |name: &str, bounded: Option<bool>| match bounded {
        Some(false) => missing(name, true, "the engine cannot", "give the engine this control group"),
        Some(true) | None => held(name, true, "by the engine's control group"),
    };
    [
        guard(doctor::MEMORY_LIMIT, engine.info.memory_limit),
        guard(doctor::PROCESS_LIMIT, engine.info.pids_limit),
        guard(doctor::CPU_LIMIT, engine.info.cpu_cfs_quota),
        held(
            doctor::DISK_LIMIT,
            false,
            "files in memory, in several places of fixed sizes, and limits of each process",
        ),
    ]
}

fn walls(engine: &Engine) -> [Guard; 6] {
    let ids = match engine.ids() {
        Ids::Translated => held(doctor::USER_NAMESPACE, false, "ids are the engine's to translate"),
        Ids::Same => missing(
            doctor::USER_NAMESPACE,
            false,
            "each sandbox runs as an ordinary user of its own instead",
            "run a rootless engine, or one with userns-remap",
        ),
    };
    [
        ids,
        held(doctor::NAMESPACES, true, "by the engine; no network but the exit"),
        held(doctor::PRIVATE_ROOT, true, "the image, read-only"),
        held(doctor::NO_NEW_PRIVILEGES, true, "by the engine, and again by tools"),
        held(
            doctor::SECCOMP,
            true,
            "the engine's, and ours on top of it; a sandbox that cannot load it is not made",
        ),
        missing(
            doctor::LANDLOCK,
            false,
            "not used in containers: /proc is masked and read-only by mounts",
            "",
        ),
    ]
}

fn held(name: &str, floor: bool, detail: impl Into<String>) -> Guard {
    Guard { name: name.to_owned(), holds: true, floor, detail: detail.into(), how_to_enable: String::new() }
}

fn missing(name: &str, floor: bool, detail: impl Into<String>, how: &str) -> Guard {
    Guard { name: name.to_owned(), holds: false, floor, detail: detail.into(), how_to_enable: how.to_owned() }
}
