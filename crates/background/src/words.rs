//! What the processes of a store say to each other.

use tokio::sync::broadcast::{Receiver, error::RecvError};

/// The next word that `of` makes something of. Words may be lost: whoever listens also looks for itself now and then.
pub(crate) async fn next<T>(words: &mut Receiver<String>, of: impl Fn(&str) -> Option<T>) -> T {
    loop {
        match words.recv().await {
            Ok(word) => {
                if let Some(said) = of(&word) {
                    return said;
                }
            }
            Err(RecvError::Lagged(_)) => {}
            // The store is closed, and this is about to end.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
