//! Telling the other processes that a provider refuses, and hearing it from them.
//!
//! A word over the database, which may be lost: then the other process hears of the limit from the provider itself.
//! It says how long and not until when, so that no two clocks are compared.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use store::Store;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use crate::model::{OnPause, Providers};

/// Pauses that wait to be told. There are few providers, and each tells a pause at most once a second.
const PAUSES_MAX: usize = 64;

/// How a word of ours begins.
const PAUSE: &str = "pause";

/// Passes pauses on and takes them in, for as long as it is awaited.
pub(crate) async fn pass_on(store: &Store, models: &Providers) -> Infallible {
    let (paused, mut pauses) = mpsc::channel(PAUSES_MAX);
    let on_pause: OnPause = Arc::new(move |provider, wait| {
        // Full: as good as lost.
        let _ = paused.try_send(word(provider, wait));
    });
    models.set_on_pause(&on_pause);
    let mut words = store.words();
    loop {
        tokio::select! {
            Some(word) = pauses.recv() => store.tell(&word).await,
            heard = words.recv() => match heard {
                Ok(word) => {
                    if let Some((provider, wait)) = read(&word) {
                        models.pause(provider, wait);
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                // The store is closed; the brain is about to end, too.
                Err(RecvError::Closed) => std::future::pending().await,
            },
        }
    }
}

fn word(provider: &str, wait: Duration) -> String {
    format!("{PAUSE} {} {provider}", wait.as_millis())
}

fn read(word: &str) -> Option<(&str, Duration)> {
    let (wait, provider) = word.strip_prefix(PAUSE)?.strip_prefix(' ')?.split_once(' ')?;
    Some((provider, Duration::from_millis(wait.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_meant_and_others_are_left_alone() {
        let said = word("my gateway", Duration::from_millis(1500));
        assert_eq!(read(&said), Some(("my gateway", Duration::from_millis(1500))));
        for other in ["", "pause", "pause x y", "paused 5 y", "pause 5"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
