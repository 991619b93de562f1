//! Pauses of model providers, between the processes of a fleet: who is refused by a provider tells the others, so that
//! they do not run into the same wall one by one. A word may be lost; then a process finds out by itself.

use std::sync::Arc;
use std::time::Duration;

use harness::model::Providers;
use store::Store;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

/// Pauses that may wait to be told.
const WAITING_MAX: usize = 64;
/// What the words begin with.
const PAUSE: &str = "pause";

/// Tells and hears of pauses for as long as it is polled.
pub(crate) async fn share(store: Store, models: Arc<Providers>) {
    let (sender, mut own) = mpsc::channel(WAITING_MAX);
    models.set_on_pause(
        &(Arc::new(move |provider: &str, wait: Duration| {
            // If there is no room others find out by themselves.
            let _ = sender.try_send(word(provider, wait));
        }) as _),
    );
    let mut words = store.words();
    loop {
        tokio::select! {
            Some(word) = own.recv() => store.tell(&word).await,
            heard = words.recv() => match heard {
                Ok(word) => {
                    if let Some((provider, wait)) = read(&word) {
                        models.pause(provider, wait);
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                // The store is gone.
                Err(RecvError::Closed) => return,
            },
        }
    }
}

fn word(provider: &str, wait: Duration) -> String {
    format!("{PAUSE} {} {provider}", wait.as_millis())
}

fn read(word: &str) -> Option<(&str, Duration)> {
    let (millis, provider) = word.strip_prefix(PAUSE)?.strip_prefix(' ')?.split_once(' ')?;
    Some((provider, Duration::from_millis(millis.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written() {
        let wait = Duration::from_millis(1_500);
        assert_eq!(read(&word("my provider", wait)), Some(("my provider", wait)));
        assert_eq!(read("something else"), None);
    }
}
