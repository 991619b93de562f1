//! The hands that the settings ask for.

use std::sync::Arc;

use sandbox::doctor::Report;
use sandbox::supervisor::{self, Supervised};
use sandbox::{Docker, Error, Provider};

use crate::settings::Sandboxes;

/// Sandboxes of one kind, with what the trait of all kinds does not say.
#[derive(Clone)]
pub(crate) enum Hands {
    Namespaces(Arc<Supervised>),
    Docker(Arc<Docker>),
}

impl Hands {
    /// Kept by a supervisor of these settings. Starts and asks nobody yet.
    pub(crate) fn kept_by(settings: supervisor::Settings, sandboxes: &Sandboxes) -> Self {
        match sandboxes {
            Sandboxes::Namespaces => Self::Namespaces(Arc::new(Supervised::new(settings))),
            Sandboxes::Docker(chosen) => {
                // The supervisor itself installs nothing then.
                let registries = settings.registries.clone();
                let settings = supervisor::Settings { registries: None, ..settings };
                let keeper = Arc::new(Supervised::new(settings));
                let chosen = sandbox::docker::Settings { registries, ..chosen.clone() };
                Self::Docker(Arc::new(Docker::new(keeper, chosen)))
            }
        }
    }

    pub(crate) fn provider(&self) -> Arc<dyn Provider> {
        match self {
            Self::Namespaces(hands) => Arc::clone(hands) as _,
            Self::Docker(hands) => Arc::clone(hands) as _,
        }
    }

    /// What the sandboxes hold off.
    pub(crate) async fn report(&self) -> Result<Report, Error> {
        match self {
            Self::Namespaces(hands) => hands.report().await,
            Self::Docker(hands) => hands.report().await,
        }
    }
}
