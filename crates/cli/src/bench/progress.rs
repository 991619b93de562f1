//! What is being measured now, on standard error, for whoever waits.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line that says how far a bench has come. Nothing is drawn where nobody looks.
pub(super) struct Progress(ProgressBar);

/// How often the clock of the line moves. Rarely: drawing must not be what is measured.
const TICK: Duration = Duration::from_millis(500);

impl Progress {
    /// A bench of so many steps.
    pub(super) fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  ({elapsed})")
            .expect("a valid template");
        bar.set_style(style);
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// The next step begins.
    pub(super) fn step(&self, what: impl Into<String>) {
        self.0.inc(1);
        self.0.set_message(what.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
