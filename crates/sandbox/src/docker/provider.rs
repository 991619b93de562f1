//! [`Docker`]: a [`Provider`] whose sandboxes an engine starts and the supervisor keeps.
//!
//! Only making and removing concern the engine:
//!
//! ```text
//! server ── open a door ──▶ supervisor                 (the intent: from here on the sandbox is listed)
//! server ── create, start ──▶ engine ──▶ tools ── connect ──▶ supervisor
//! server ── has it come? ──▶ supervisor                (and every call after that)
//! ```
//!
//! Any of the four may die at any point. A door is asked for again and is the same; a container has a name that follows from
//! its sandbox's, so it is found again, and a label that says for which door it was made. A container that no supervisor
//! knows serves nobody: it ends by itself with its socket, and what is left of it goes at the next start or listing.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tools::wire::Output;

use super::container::{self, Plan, Role};
use super::engine::{Engine, Image, Labelled};
use super::layers::{self, Layer};
use super::settings::Settings;
use crate::provider::{
    Base, Call, Collected, Equipment, Error, Exits, Pool, Progress, Provider, Resources, SandboxId,
    SandboxInfo, Saved,
};
use crate::supervisor::Supervised;
use crate::supervisor::build::{BUILDER, Failures};
use crate::supervisor::client::Door;
use crate::supervisor::guests::RESTORE_TIME_MAX;
use crate::supervisor::terms::checked;

/// Between two tries to make a container whose name is taken: by one that the engine is still making for a server that has
/// died, or is still removing.
const PAUSE: Duration = Duration::from_millis(50);
/// A complaint may still be on its way from the supervisor when the engine says that the container has ended.
const LAST_WORDS_TIME_MAX: Duration = Duration::from_secs(2);

/// Sandboxes as containers on this machine.
pub struct Docker {
    keeper: Arc<Supervised>,
    settings: Settings,
    /// The engine, once it has answered. Forgotten when it can no longer be reached: the next may be another.
    engine: Mutex<Option<Arc<Engine>>>,
    pub(super) failures: Failures,
}

impl Docker {
    /// Does nothing yet: the engine is asked when it is first needed.
    #[must_use]
    pub fn new(keeper: Arc<Supervised>, settings: Settings) -> Self {
        Self { keeper, settings, engine: Mutex::new(None), failures: Failures::default() }
    }

    /// The supervisor that keeps the containers.
    #[must_use]
    pub fn keeper(&self) -> &Supervised {
        &self.keeper
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) async fn engine(&self) -> Result<Arc<Engine>, Error> {
        let mut engine = self.engine.lock().await;
        if let Some(engine) = engine.as_ref() {
            return Ok(Arc::clone(engine));
        }
        Ok(Arc::clone(engine.insert(Arc::new(Engine::connect(&self.settings).await?))))
    }

    /// Passes a result on, and forgets an engine that may be gone.
    async fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if matches!(result, Err(Error::Unavailable { .. })) {
            self.engine.lock().await.take();
        }
        result
    }

    /// The engine's name for the container of a sandbox.
    pub(super) fn name(&self, id: &SandboxId) -> Result<String, Error> {
        Ok(container::name(&self.keeper.instance()?, id))
    }

    /// The image that is the root of a base, without its packages.
    async fn root(&self, engine: &Engine, image: &str) -> Result<Image, Error> {
        engine.image(image).await?.ok_or_else(|| {
            Error::refused(format!(
                "the image `{image}` is not on this machine: `docker pull {image}` brings it, with the engine's own credentials"
            ))
        })
    }

    /// The same resources, whose base says which image it is by its content: a snapshot fits on no other.
    async fn announced(&self, engine: &Engine, resources: &Resources) -> Result<Resources, Error> {
        let (image, _) = self.settings.choose(resources)?;
        // One that has gone meanwhile matters only to who needs a new container.
        let image = engine
            .image(image)
            .await?
            .map_or_else(|| image.to_owned(), |found| format!("{image} ({})", found.id));
        let mut resources = resources.clone();
        resources.base.image = Some(image);
        Ok(resources)
    }

    /// The layer of a base that has packages.
    pub(super) async fn layer(&self, engine: &Engine, base: &Base) -> Result<Layer, Error> {
        let asked = Resources { base: base.clone(), ..Resources::default() };
        let (image, _) = self.settings.choose(&asked)?;
        let root = self.root(engine, image).await?;
        Ok(Layer::of(base, &root.id, &self.keeper.instance()?, &self.keeper.shelf()))
    }

    async fn clear(
        &self,
        engine: &Engine,
        containers: Vec<Labelled>,
        living: &[SandboxInfo],
    ) -> Result<usize, Error> {
        let living: HashSet<&SandboxId> = living.iter().map(|info| &info.id).collect();
        let mut removed = 0;
        for Labelled { container, sandbox } in containers {
            if sandbox.is_some_and(|sandbox| living.contains(&sandbox)) {
                continue;
            }
            self.noted(engine.remove(&container).await).await?;
            removed += 1;
        }
        layers::clear(engine, &self.keeper.shelf(), &self.keeper.instance()?).await?;
        if removed > 0 {
            tracing::info!(containers = removed, "removed containers whose sandboxes are no more");
        }
        Ok(removed)
    }

    /// Has the engine make the container, and waits until it has come to the door. Tries for as long as the caller waits.
    async fn fill(&self, engine: &Engine, id: &SandboxId, fence: u64, plan: &Plan<'_>) -> Result<(), Error> {
        let name = container::name(plan.instance, id);
        loop {
            let made = engine.create(&name, plan.body()?).await?;
            if !made {
                match engine.find(&name).await? {
                    // Somebody asked for the same sandbox a moment ago, or died after that.
                    Some(found) if found.is_usable && found.door == Some(plan.door_name()) => {}
                    Some(_) => {
                        engine.remove(&name).await?;
                        continue;
                    }
                    None => {
                        sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            if engine.start(&name).await? {
                return self.await_it(engine, id, fence, plan).await;
            }
            // It went away between the two, or ended at once: then the supervisor has heard why.
            let heard = timeout(LAST_WORDS_TIME_MAX, self.come(id, fence, plan.resources)).await;
            if let Ok(heard) = heard {
                return heard;
            }
        }
    }

    async fn await_it(
        &self,
        engine: &Engine,
        id: &SandboxId,
        fence: u64,
        plan: &Plan<'_>,
    ) -> Result<(), Error> {
        let name = container::name(plan.instance, id);
        let mut come = std::pin::pin!(self.come(id, fence, plan.resources));
        let ended = tokio::select! {
            come = &mut come => return come,
            ended = engine.ended(&name) => ended,
        };
        match timeout(LAST_WORDS_TIME_MAX, come).await {
            Ok(come) => come,
            Err(_) => Err(Error::unavailable(format!("{ended} before it was ready"))),
        }
    }

    async fn come(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        self.keeper.adopted(id, fence, self.patience(resources)).await
    }

    /// How long one of these may take.
    fn patience(&self, resources: &Resources) -> Duration {
        let restoring = if resources.restore.is_some() { RESTORE_TIME_MAX } else { Duration::ZERO };
        self.settings.provision_time_max + restoring
    }

    async fn make(
        &self,
        engine: &Engine,
        id: &SandboxId,
        fence: u64,
        resources: &Resources,
        door: &Door,
        role: Role,
    ) -> Result<(), Error> {
        let (image, runtime) = self.settings.choose(resources)?;
        let layer = match resources.base.packages.is_empty() {
            true => None,
            false => Some(self.layer(engine, &resources.base).await?),
        };
        let image = layer.as_ref().map_or(image, |layer| layer.image.as_str());
        let volumes = self.root(engine, image).await?.volumes;
        let instance = self.keeper.instance()?;
        let resources = checked(resources.clone())?;
        let plan = Plan {
            id,
            instance: &instance,
            image,
            runtime,
            volumes: &volumes,
            resources: &resources,
            door,
            ids: engine.ids(),
            kind: engine.kind,
            role,
        };
        self.fill(engine, id, fence, &plan).await
    }

    async fn try_provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        self.settings.choose(resources)?;
        let engine = self.engine().await?;
        if !resources.base.packages.is_empty() {
            let layer = self.layer(&engine, &resources.base).await?;
            if !layer.is_there(&engine).await? {
                return Err(Error::Unprepared {});
            }
            layer.touch();
        }
        self.bring(&engine, id, fence, resources, Role::Sandbox).await
    }

    /// Opens a door and has the engine fill it.
    pub(super) async fn bring(
        &self,
        engine: &Engine,
        id: &SandboxId,
        fence: u64,
        resources: &Resources,
        role: Role,
    ) -> Result<(), Error> {
        let (_, runtime) = self.settings.choose(resources)?;
        if let Some(what) = engine.unbounded() {
            return Err(Error::refused(format!(
                "the engine cannot limit {what}, and a sandbox without that is none"
            )));
        }
        if !engine.obeys(runtime) {
            return Err(Error::refused(format!(
                "Podman runs containers with the runtime that its service was started with, which is not `{}`",
                runtime.unwrap_or_default()
            )));
        }
        let default = engine.info.default_runtime.as_deref();
        // A builder's id is root's, whom a private folder keeps nothing from.
        let first_id = match role {
            Role::Sandbox => container::first_id(engine.ids(), runtime.or(default)),
            Role::Builder => None,
        };
        let announced = self.announced(engine, resources).await?;
        let Some(door) = self.keeper.adopt(id, fence, &announced, first_id).await? else { return Ok(()) };
        let patience = self.patience(resources);
        let made = match timeout(patience, self.make(engine, id, fence, resources, &door, role)).await {
            Ok(made) => made,
            Err(_) => Err(Error::unavailable(format!(
                "the container was not ready after {} seconds",
                patience.as_secs_f64()
            ))),
        };
        match made {
            Ok(()) => Ok(()),
            // It is somebody else's now, who sees to it.
            Err(fenced @ Error::Fenced { .. }) => Err(fenced),
            Err(error) => {
                if let Err(left) = self.destroy(id).await {
                    tracing::debug!(sandbox.id = %id, %left, "a container that failed is left for the next sweep");
                }
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Provider for Docker {
    async fn provision(&self, id: &SandboxId, fence: u64, resources: &Resources) -> Result<(), Error> {
        let provisioned = self.try_provision(id, fence, resources).await;
        self.noted(provisioned).await
    }

    async fn equip(&self, id: &SandboxId, fence: u64, equipment: &Equipment) -> Result<(), Error> {
        self.keeper.equip(id, fence, equipment).await
    }

    async fn prepare(&self, base: &Base, progress: &Progress<'_>) -> Result<(), Error> {
        let prepared = layers::prepare(self, base, progress).await;
        self.noted(prepared).await
    }

    /// What is left of their containers goes with the next listing, as every container does whose sandbox lives no more.
    async fn tidy(&self) -> Result<(), Error> {
        self.keeper.tidy().await
    }

    async fn execute(&self, call: Call) -> Result<Output, Error> {
        self.keeper.execute(call).await
    }

    async fn cancel(&self, id: &SandboxId, fence: u64, call_id: &str) -> Result<bool, Error> {
        self.keeper.cancel(id, fence, call_id).await
    }

    async fn touch(&self, id: &SandboxId, fence: u64) -> Result<(), Error> {
        self.keeper.touch(id, fence).await
    }

    async fn collect_outputs(&self, id: &SandboxId, into: &Path) -> Result<Vec<Collected>, Error> {
        self.keeper.collect_outputs(id, into).await
    }

    async fn save(&self, id: &SandboxId, fence: u64, into: &Path) -> Result<Saved, Error> {
        self.keeper.save(id, fence, into).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), Error> {
        // The supervisor first: it hangs up, with which everything inside ends, and it lets nobody in any more. Where one of
        // the two cannot be reached, the other still does its part.
        let forgotten = self.keeper.destroy(id).await;
        let removed = async {
            let name = container::name(&self.keeper.instance()?, id);
            self.engine().await?.remove(&name).await
        };
        let removed = removed.await;
        forgotten.and(self.noted(removed).await)
    }

    /// Removes, by the way, what the engine still has of sandboxes that live no more.
    async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        let instance = self.keeper.instance()?;
        // In this order: a container is made after its door, so one that is seen here and is not listed after that is no
        // one's.
        let seen = async {
            let engine = self.engine().await?;
            let containers = self.noted(engine.labelled(&instance).await).await?;
            Ok::<_, Error>((engine, containers))
        };
        let seen = seen.await;
        let living = self.keeper.list_all().await?;
        let cleared = match seen {
            Ok((engine, containers)) => self.clear(&engine, containers, &living).await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            // What lives is known without the engine.
            tracing::debug!(%error, "the engine's containers were not looked through");
        }
        Ok(living.into_iter().filter(|info| !info.id.as_str().starts_with(BUILDER)).collect())
    }

    /// Nothing is: the engine makes a container when somebody asks for it.
    async fn keep_ready(&self, _pools: &[Pool]) -> Result<(), Error> {
        Ok(())
    }

    fn exits(&self) -> Exits {
        self.keeper.exits()
    }
}
