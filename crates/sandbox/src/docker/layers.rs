//! Package layers of containers: an environment's packages, installed over an image and kept as an image of the engine.
//!
//! A builder is a container like any other, with two differences: its root may be written, and its user is root with the few
//! capabilities that package managers need. What it reaches is package registries, through the exit, and nothing of the
//! engine's network. When every manager has succeeded the engine keeps what has changed in the root as
//! `posthouse-layer:<key>-<data directory>`; sandboxes start from that, as unprivileged as ever. The key is a digest of the image
//! itself, not of its name, and of the lists.
//!
//! A card in `layers/<key>` of the data directory says what the layer is and when it was last used, so that it is listed and
//! pruned as every layer is. An image of the engine without a card goes with the next look ([`clear`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use tools::wire::Output;

use super::container::Role;
use super::engine::Engine;
use super::provider::Docker;
use crate::namespaces::child::exit_variables;
use crate::packages::Step;
use crate::provider::{Base, Call, Error, Limits, Progress, Provider as _, Resources, Rights, SandboxId};
use crate::shelf::{LAYER_FILE, Shelf, mark_used};
use crate::supervisor::build::{self, Installer};

/// The name of the engine's images that are layers.
pub(super) const REPOSITORY: &str = "posthouse-layer";

/// What a builder leaves that is no part of a layer: what managers keep for themselves.
const LEFT_OVERS: &str = "rm -rf /root/.cache /root/.npm /root/.cargo/registry /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]* \
                          2> /dev/null; true";

/// One layer, whether it is there or not.
pub(super) struct Layer {
    key: String,
    /// The engine's name of it.
    pub(super) image: String,
    folder: PathBuf,
}

impl Layer {
    /// The layer of these packages over the image with this id.
    pub(super) fn of(base: &Base, image_id: &str, instance: &str, shelf: &Shelf) -> Self {
        let key = base.packages.key(&format!("container image {image_id}"));
        let image = format!("{REPOSITORY}:{}", tag(&key, instance));
        let folder = shelf.layers().join(&key);
        Self { key, image, folder }
    }

    /// Whether sandboxes can start from it.
    pub(super) async fn is_there(&self, engine: &Engine) -> Result<bool, Error> {
        Ok(self.folder.join(LAYER_FILE).is_file() && engine.image(&self.image).await?.is_some())
    }

    /// Notes that a sandbox starts from it.
    pub(super) fn touch(&self) {
        let _ = mark_used(&self.folder);
    }

    /// What the ids of its builders begin with.
    fn builders(&self) -> String {
        build::builders(&self.key)
    }

    /// Before the image, which would be nobody's without it. `engine_bytes` is what the engine keeps of it, over what it kept before.
    fn write_card(&self, base: &Base, engine_bytes: u64) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let card = json!({
            "image": base.image, "packages": base.packages, "container_image": self.image, "engine_bytes": engine_bytes,
        });
        fs::write(self.folder.join(LAYER_FILE), serde_json::to_vec_pretty(&card)?)
    }
}

/// A tag holds 128 characters, of which these are 81.
fn tag(key: &str, instance: &str) -> String {
    format!("{key}-{instance}")
}

/// Makes the layer of a base that has packages, unless it is there.
pub(super) async fn prepare(hands: &Docker, base: &Base, progress: &Progress<'_>) -> Result<(), Error> {
    let steps = base.packages.steps().map_err(build::odd)?;
    if steps.is_empty() {
        return Ok(());
    }
    let engine = hands.engine().await?;
    let (layer, shelf) = (hands.layer(&engine, base).await?, hands.keeper().shelf());
    if layer.is_there(&engine).await? {
        return Ok(());
    }
    let _lock = build::lock(&shelf, &layer.key, progress).await?;
    if layer.is_there(&engine).await? {
        return Ok(());
    }
    // Whoever held the lock before may have failed.
    if let Some(error) = hands.failures.find(base) {
        return Err(error);
    }
    clear_builders(hands, &layer).await?;
    let built = build(hands, &engine, &layer, base, &steps, progress).await;
    if let Err(error) = &built {
        if matches!(error, Error::Packages { .. }) {
            hands.failures.keep(base, error);
        }
        clear_builders(hands, &layer).await?;
    }
    built
}

/// Ends builders whose servers are gone. The lock is held, so nobody's is at work.
async fn clear_builders(hands: &Docker, layer: &Layer) -> Result<(), Error> {
    for sandbox in hands.keeper().list_all().await? {
        if sandbox.id.as_str().starts_with(&layer.builders()) {
            hands.destroy(&sandbox.id).await?;
        }
    }
    Ok(())
}

async fn build(
    hands: &Docker,
    engine: &Engine,
    layer: &Layer,
    base: &Base,
    steps: &[Step],
    progress: &Progress<'_>,
) -> Result<(), Error> {
    let mut unique = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut unique)
        .map_err(|_| Error::unavailable("no randomness"))?;
    let name = format!("{}{}", layer.builders(), crate::packages::hex(&unique));
    let id = SandboxId::parse(&name).expect("letters, digits and hyphens");
    let resources = Resources {
        limits: Limits { file_size_bytes: 8 << 30, ..Limits::default() },
        network: hands.settings().registries.clone(),
        rights: Rights::Install,
        base: Base { image: base.image.clone(), ..Base::default() },
        ..Resources::default()
    };
    hands.bring(engine, &id, 1, &resources, Role::Builder).await?;
    // Said to each manager instead of to the container, whose variables would be the layer's.
    let told: Vec<String> = exit_variables().iter().map(|variable| format!("export {variable}; ")).collect();
    let told = if resources.network.is_some() { told.concat() } else { String::new() };
    let disk = disk_of(engine, &hands.keeper().shelf());
    let installer = Installer { hands: hands.keeper(), id: &id, disk };
    for step in steps {
        let list = base.packages.of(step.manager);
        progress(&format!("{} installs {}", step.manager, list.join(", ")));
        let step = Step { command: format!("{told}{}", step.command), ..step.clone() };
        installer.run(&step, list).await?;
    }
    tidy(hands, &id).await?;
    progress("keeping what was installed");
    layer.write_card(base, 0).map_err(Error::unavailable)?;
    let instance = hands.keeper().instance()?;
    let kept = engine.commit(&hands.name(&id)?, REPOSITORY, &tag(&layer.key, &instance), &instance).await;
    if kept.is_err() {
        let _ = fs::remove_dir_all(&layer.folder);
    }
    kept?;
    let below = base.image.as_ref().unwrap_or(&hands.settings().image);
    let mut sizes = [0; 2];
    for (size, image) in sizes.iter_mut().zip([&layer.image, below]) {
        *size = engine.image(image).await?.map_or(0, |image| image.size_bytes);
    }
    layer.write_card(base, sizes[0].saturating_sub(sizes[1])).map_err(Error::unavailable)?;
    hands.destroy(&id).await
}

async fn tidy(hands: &Docker, id: &SandboxId) -> Result<Output, Error> {
    let call = Call {
        sandbox: id.clone(),
        call_id: "tidy".to_owned(),
        fence: 1,
        name: "bash".to_owned(),
        input: json!({"command": LEFT_OVERS}),
        timeout: std::time::Duration::from_secs(300),
    };
    hands.keeper().execute(call).await
}

/// Where the engine writes, if that can be seen from here.
fn disk_of(engine: &Engine, shelf: &Shelf) -> PathBuf {
    let root = engine.info.docker_root_dir.as_deref().map(Path::new).filter(|root| root.is_dir());
    root.map_or_else(|| shelf.layers(), Path::to_owned)
}

/// Removes the engine's images of layers that were pruned. One that a container still runs on stays until the next time.
pub(super) async fn clear(engine: &Engine, shelf: &Shelf, instance: &str) -> Result<(), Error> {
    for image in engine.layers(instance).await? {
        let tag = image.strip_prefix(REPOSITORY).and_then(|rest| rest.strip_prefix(':'));
        let key = tag.and_then(|tag| tag.strip_suffix(instance)).and_then(|key| key.strip_suffix('-'));
        let Some(key) = key else { continue };
        if !shelf.layers().join(key).join(LAYER_FILE).is_file() {
            engine.remove_image(&image).await?;
            tracing::info!(image, "removed packages that nobody used any more");
        }
    }
    Ok(())
}
