//! The vault: what sessions may spend and nobody may see.
//!
//! A secret comes in through the API as a [`Secret`](protocol::secret::Secret), is sealed at once, and lasts in the store
//! as sealed text. It is opened here and nowhere else, for whoever spends it outside a sandbox: a proxy asks
//! [`Credentials`] which credential fits, gets it [`Opened`], and what it may do with that is put it into a request.
//!
//! ```text
//!   master key (file, variable or command) ──wraps──▶ one key for each workspace ──wraps──▶ one key for each sealed secret
//! ```
//!
//! In reading order: `credentials` (which credential, opened, changed, renewed), `opened`, `audit` (who spent what), `derive`
//! (what stands for a secret where it must not be), `renewal` (OAuth), `probe` (whether one works), `answer` (what others
//! said), `keys` (the keys of workspaces), `seal` (the cryptography), `master` (where the master key comes from), `rotate`
//! (another master key).
//!
//! This crate logs no secret and keeps none longer than it takes to spend it, keys apart. It does not know what a sandbox
//! or a model is.

mod answer;
mod audit;
mod credentials;
mod derive;
mod error;
mod keys;
mod master;
mod opened;
mod probe;
mod renewal;
mod rotate;
mod seal;

pub use audit::{Outcome, TokenUse, Use, Who};
pub use credentials::{Credentials, Renewed, Spendable};
pub use derive::PLACEHOLDER_PREFIX;
pub use error::{Error, KeyError};
pub use master::{KEYS_MAX, Keyring, MasterKey, Source};
pub use opened::Opened;
pub use renewal::RenewalError;
pub use rotate::{Book, Rotation, rotate};
