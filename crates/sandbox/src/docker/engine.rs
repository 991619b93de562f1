//! The connection to an engine, what it says about itself, and its errors in our words.

use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerConfig, ContainerCreateBody, SystemInfo};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker as Client};
use futures_util::StreamExt as _;

use super::settings::Settings;
use crate::provider::{Error, SandboxId};

/// The labels by which our containers are known.
pub(crate) const INSTANCE: &str = "posthouse.instance";
pub(crate) const SANDBOX: &str = "posthouse.sandbox";
pub(crate) const DOOR: &str = "posthouse.door";
/// On images: whose layer it is.
const LAYER: &str = "posthouse.layer";

/// One answer of an engine; the longest are those to starting and removing on a busy machine.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether a container is gone.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to keep what a builder has written, which may be gigabytes.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(1800);
/// How long the engine may take to be done with one that it is removing.
const REMOVE_TIME_MAX: Duration = Duration::from_secs(10);

/// An engine that has answered.
pub(crate) struct Engine {
    client: Client,
    host: String,
    /// What it said about itself.
    pub(crate) info: SystemInfo,
    pub(crate) kind: Kind,
}

/// Whose engine it is, where that makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Podman,
}

/// Whether ids inside are ids outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    Same,
    /// The engine runs as an ordinary user, or translates them: ids inside end at 65,535, and what they are outside is its
    /// affair.
    Translated,
}

/// An image that is on the machine.
pub(crate) struct Image {
    /// Tells it from every other, another of the same name included.
    pub(crate) id: String,
    /// What it takes, and what it is based on with it.
    pub(crate) size_bytes: u64,
    /// The volumes that it asks for.
    pub(crate) volumes: Vec<String>,
}

/// A container that carries our label.
pub(crate) struct Labelled {
    pub(crate) container: String,
    pub(crate) sandbox: Option<SandboxId>,
}

/// What is known of a container of some name.
pub(crate) struct Found {
    pub(crate) door: Option<String>,
    /// Whether it runs, or has never run.
    pub(crate) is_usable: bool,
}

impl Engine {
    /// Connects and asks who it is.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self, Error> {
        let path = settings.socket()?;
        let unreachable = |error: EngineError| at(&settings.host, error);
        let client = Client::connect_with_unix(path, ANSWER_TIME_MAX.as_secs(), API_DEFAULT_VERSION)
            .map_err(unreachable)?
            .negotiate_version()
            .await
            .map_err(unreachable)?;
        let version = client.version().await.map_err(unreachable)?;
        let podman = version.components.unwrap_or_default().iter().any(|part| part.name.contains("Podman"));
        let info = client.info().await.map_err(unreachable)?;
        let kind = if podman { Kind::Podman } else { Kind::Docker };
        Ok(Self { client, host: settings.host.clone(), info, kind })
    }

    pub(crate) fn ids(&self) -> Ids {
        let options = self.info.security_options.iter().flatten();
        let mut names = options.flat_map(|option| option.split(','));
        match names.any(|name| name == "name=userns" || name == "name=rootless") {
            true => Ids::Translated,
            false => Ids::Same,
        }
    }

    /// Which of the bounds that every sandbox has the engine cannot keep.
    pub(crate) fn unbounded(&self) -> Option<&'static str> {
        [
            (self.info.memory_limit, "memory"),
            (self.info.pids_limit, "the number of processes"),
            (self.info.cpu_cfs_quota, "processor time"),
        ]
        .into_iter()
        .find(|(bounded, _)| *bounded == Some(false))
        .map(|(_, what)| what)
    }

    /// What an image is; `None` if there is none of this name here.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        match self.client.inspect_image(name).await {
            Ok(found) => Ok(Some(Image {
                id: found.id.unwrap_or_default(),
                size_bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
                volumes: found.config.and_then(|config| config.volumes).unwrap_or_default(),
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Keeps what a container has changed in its root as an image of this instance. It stands still meanwhile.
    pub(crate) async fn commit(
        &self,
        container: &str,
        repository: &str,
        tag: &str,
        instance: &str,
    ) -> Result<(), Error> {
        let changes = format!("LABEL {LAYER}={instance}");
        let options = CommitContainerOptionsBuilder::default()
            .container(container)
            .repo(repository)
            .tag(tag)
            .pause(true)
            .changes(&changes)
            .build();
        let patient = self.client.clone().with_timeout(COMMIT_TIME_MAX);
        let kept = patient.commit_container(options, ContainerConfig::default()).await;
        kept.map(drop).map_err(|error| self.failed(error))
    }

    /// The names of the layers of an instance.
    pub(crate) async fn layers(&self, instance: &str) -> Result<Vec<String>, Error> {
        let filters = [("label".to_owned(), vec![format!("{LAYER}={instance}")])].into();
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let found = self.client.list_images(Some(options)).await.map_err(|error| self.failed(error))?;
        // Podman says which registry it would look for them in.
        let name = |name: String| {
            let bare = ["localhost/", "docker.io/library/"].iter().find_map(|place| name.strip_prefix(place));
            bare.unwrap_or(&name).to_owned()
        };
        Ok(found.into_iter().flat_map(|image| image.repo_tags).map(name).collect())
    }

    /// Removes an image, unless a container runs on it.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Error> {
        let options = RemoveImageOptionsBuilder::default().build();
        match self.client.remove_image(name, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Creates a container; `false` if there is one of that name.
    pub(crate) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<bool, Error> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        match self.client.create_container(Some(options), body).await {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(409) || says(&error, "already in use") => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Starts a container, unless it runs; `false` if there is none.
    pub(crate) async fn start(&self, name: &str) -> Result<bool, Error> {
        match self.client.start_container(name, None).await {
            Ok(()) => Ok(true),
            Err(error) if status(&error) == Some(304) => Ok(true),
            Err(error) if status(&error) == Some(404) && !says(&error, "executable") => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(crate) async fn find(&self, name: &str) -> Result<Option<Found>, Error> {
        use bollard::models::ContainerStateStatusEnum as Status;
        match self.client.inspect_container(name, None).await {
            Ok(found) => {
                let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
                let status = found.state.and_then(|state| state.status);
                Ok(Some(Found {
                    door: labels.get(DOOR).cloned(),
                    is_usable: matches!(status, Some(Status::CREATED | Status::RUNNING)),
                }))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            // A state that Docker has no word for.
            Err(EngineError::JsonDataError { message, .. }) if message.contains("`stopped`") => {
                Ok(Some(Found { door: None, is_usable: false }))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Whether it runs a container by this runtime if it is asked to.
    pub(crate) fn obeys(&self, runtime: Option<&str>) -> bool {
        match self.kind {
            Kind::Docker => true,
            // It takes the runtime that it was started with, whatever it is told.
            Kind::Podman => runtime.is_none() || runtime == self.info.default_runtime.as_deref(),
        }
    }

    /// Returns when the container no longer runs, with what is known of its end. Where the engine cannot say, it never
    /// returns: somebody else keeps the time.
    pub(crate) async fn ended(&self, name: &str) -> String {
        let mut wait = std::pin::pin!(self.client.wait_container(name, None));
        match wait.next().await {
            Some(Ok(end)) => format!("its container ended with status {}", end.status_code),
            Some(Err(EngineError::DockerContainerWaitError { error, code })) => {
                format!("its container ended with status {code} {error}").trim_end().to_owned()
            }
            Some(Err(error)) if status(&error) == Some(404) => "its container has ended".to_owned(),
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// Ends and removes a container, and makes sure that it is gone. Unknown ones are.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Error> {
        let gone = async {
            loop {
                let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
                match self.client.remove_container(name, Some(options)).await {
                    Ok(()) => {}
                    // Podman has another status for one that goes away while it is asked.
                    Err(error) if status(&error) == Some(404) || says(&error, "no such container") => {
                        return Ok(());
                    }
                    // Somebody else removes it already: it was made to go with its process.
                    Err(error) if status(&error) == Some(409) || says(&error, "container state improper") => {
                    }
                    Err(error) => return Err(self.failed(error)),
                }
                if self.find(name).await?.is_none() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(REMOVE_TIME_MAX, gone).await {
            Ok(gone) => gone,
            Err(_) => Err(Error::unavailable(format!("the engine does not remove the container {name}"))),
        }
    }

    /// Every container of this instance, whatever its state.
    pub(crate) async fn labelled(&self, instance: &str) -> Result<Vec<Labelled>, Error> {
        let filters = [("label".to_owned(), vec![format!("{INSTANCE}={instance}")])].into();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.client.list_containers(Some(options)).await.map_err(|error| self.failed(error))?;
        let labelled = found.into_iter().filter_map(|container| {
            let sandbox = container.labels.as_ref().and_then(|labels| SandboxId::parse(labels.get(SANDBOX)?));
            Some(Labelled { container: container.id?, sandbox })
        });
        Ok(labelled.collect())
    }

    fn failed(&self, error: EngineError) -> Error {
        at(&self.host, error)
    }
}

fn status(error: &EngineError) -> Option<u16> {
    match error {
        EngineError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn says(error: &EngineError, word: &str) -> bool {
    matches!(error, EngineError::DockerResponseServerError { message, .. } if message.contains(word))
}

/// What the engine refuses will not come true by asking again; anything else may.
fn at(host: &str, error: EngineError) -> Error {
    match error {
        EngineError::DockerResponseServerError { status_code: 400..=499, message } => {
            Error::refused(format!("the engine says: {}", message.trim_end()))
        }
        EngineError::DockerResponseServerError { message, .. } => {
            Error::unavailable(format!("the engine says: {}", message.trim_end()))
        }
        EngineError::RequestTimeoutError => Error::unavailable("the engine did not answer in time"),
        other => {
            let mut reason = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(cause) = source {
                reason = format!("{reason}: {cause}");
                source = cause.source();
            }
            Error::unavailable(format!("the engine at {host} cannot be reached: {reason}"))
        }
    }
}
