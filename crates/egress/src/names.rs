//! How names are looked up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// How many lookups by the system may run at once. Each holds a thread of the blocking pool, for half a minute when a name
/// server is silent, and the pool serves the rest of the server too.
const LOOKUPS_MAX: usize = 64;

/// The answers that names have.
#[derive(Clone, Debug)]
pub struct Names(Source);

#[derive(Clone, Debug)]
enum Source {
    /// What the machine's resolver says, its `hosts` file and search list included.
    System(Arc<Semaphore>),
    Table(Arc<Mutex<Rows>>),
}

impl Names {
    /// The machine's own resolver.
    pub fn system() -> Self {
        Self(Source::System(Arc::new(Semaphore::new(LOOKUPS_MAX))))
    }

    /// The addresses of a name, in the order in which they should be tried. The caller bounds the time.
    pub(crate) async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match &self.0 {
            Source::System(lookups) => {
                let permit = Arc::clone(lookups).acquire_owned().await.map_err(io::Error::other)?;
                let name = name.to_owned();
                let looking = tokio::task::spawn_blocking(move || {
                    // Until the lookup is really over, whoever has stopped waiting for it.
                    let _permit = permit;
                    let addresses = (name.as_str(), 0).to_socket_addrs()?;
                    Ok(addresses.map(|address| address.ip()).collect())
                });
                looking.await.map_err(io::Error::other)?
            }
            Source::Table(rows) => {
                let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
                rows.answer(name).ok_or_else(|| io::Error::other("the name is not in the table"))
            }
        }
    }
}

/// Names with fixed answers: for tests, and above all for names whose answer changes between two lookups.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    answers: HashMap<String, Vec<Vec<IpAddr>>>,
    lookups: HashMap<String, usize>,
}

impl Table {
    /// Sets what lookups of a name answer: the first answer first; the last one is repeated.
    pub fn set(&self, name: &str, answers: Vec<Vec<IpAddr>>) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.answers.insert(name.to_owned(), answers);
    }

    /// How often a name was looked up.
    pub fn lookups(&self, name: &str) -> usize {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.lookups.get(name).copied().unwrap_or(0)
    }

    /// These answers and no others.
    pub fn names(&self) -> Names {
        Names(Source::Table(Arc::clone(&self.0)))
    }
}

impl Rows {
    fn answer(&mut self, name: &str) -> Option<Vec<IpAddr>> {
        let lookups = self.lookups.entry(name.to_owned()).or_default();
        let answers = self.answers.get(name)?;
        let answer = answers.get(*lookups).or(answers.last());
        *lookups += 1;
        answer.cloned()
    }
}
