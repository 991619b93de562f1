//! What the operator chooses about containers.

use std::time::Duration;

use crate::provider::{Error, Network, Resources};

/// Where most engines listen.
const HOST: &str = "/var/run/docker.sock";
/// What a container is made from, unless somebody says otherwise: small, and with a bash.
const IMAGE: &str = "debian:stable-slim";
/// Starting a container takes a third of a second, on a machine under load some seconds, with gVisor a few more.
const PROVISION_TIME_MAX: Duration = Duration::from_secs(60);

/// What the operator chooses about containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The engine's socket: a path, or `unix://` and a path. Default: `/var/run/docker.sock`.
    pub host: String,
    /// What a container is made from. It must be on the machine: images are never pulled. Default: `debian:stable-slim`.
    pub image: String,
    /// What runs it: `runc`, `crun`, `runsc` or whatever the engine knows by that name. Default: the engine's choice.
    pub runtime: Option<String>,
    /// Which images an environment may ask for besides.
    pub images: Vec<String>,
    /// Which runtimes an environment may ask for besides.
    pub runtimes: Vec<String>,
    /// What containers may reach in which an environment's packages are installed: their registries.
    pub registries: Option<Network>,
    /// How long it may take to make one.
    pub provision_time_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: HOST.to_owned(),
            image: IMAGE.to_owned(),
            runtime: None,
            images: Vec::new(),
            runtimes: Vec::new(),
            registries: None,
            provision_time_max: PROVISION_TIME_MAX,
        }
    }
}

impl Settings {
    /// The path of the engine's socket.
    pub(crate) fn socket(&self) -> Result<&str, Error> {
        let path = self.host.strip_prefix("unix://").unwrap_or(&self.host);
        match path.starts_with('/') {
            true => Ok(path),
            false => Err(Error::refused(format!(
                "the engine's host is `{}`; it must be unix:// and an absolute path: the engine has to be on this machine",
                self.host
            ))),
        }
    }

    /// Image and runtime of one sandbox.
    pub(crate) fn choose<'a>(
        &'a self,
        resources: &'a Resources,
    ) -> Result<(&'a str, Option<&'a str>), Error> {
        let may = |what: &str, asked: &str, allowed: &[String]| match allowed.iter().any(|one| one == asked) {
            true => Ok(()),
            false => Err(Error::refused(format!(
                "the {what} `{asked}` is not among those that the operator allows; [sandbox.docker] {what}s = [\"…\"] does"
            ))),
        };
        let image = resources.base.image.as_deref().unwrap_or(&self.image);
        if image != self.image {
            may("image", image, &self.images)?;
        }
        let runtime = resources.runtime.as_deref().or(self.runtime.as_deref());
        if let Some(asked) = runtime
            && runtime != self.runtime.as_deref()
        {
            may("runtime", asked, &self.runtimes)?;
        }
        Ok((image, runtime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Base;

    #[test]
    fn an_environment_chooses_among_what_the_operator_allows() {
        let settings = Settings { images: vec!["other".to_owned()], ..Settings::default() };
        let asked = |image: Option<&str>, runtime: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let base = Base { image: owned(image), ..Base::default() };
            let resources = Resources { base, runtime: owned(runtime), ..Resources::default() };
            settings.choose(&resources).map(|(image, runtime)| (image.to_owned(), runtime.map(str::to_owned)))
        };
        assert_eq!(asked(None, None).unwrap(), (IMAGE.to_owned(), None));
        assert_eq!(asked(Some("other"), None).unwrap().0, "other");
        assert!(asked(Some("secret"), None).unwrap_err().to_string().contains("images = "));
        assert!(asked(None, Some("runc")).is_err());
    }

    #[test]
    fn an_engine_elsewhere_is_refused() {
        let at = |host: &str| {
            Settings { host: host.to_owned(), ..Settings::default() }.socket().map(str::to_owned)
        };
        assert_eq!(at("unix:///run/x.sock").unwrap(), "/run/x.sock");
        assert_eq!(at("/run/x.sock").unwrap(), "/run/x.sock");
        assert!(at("tcp://10.0.0.1:2375").is_err());
    }
}
