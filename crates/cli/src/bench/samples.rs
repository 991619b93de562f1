//! Percentiles of what was measured.

use std::time::Duration;

/// Figures that were measured under the same conditions. Times are in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    sorted: Vec<f64>,
}

impl Samples {
    /// Differences may be negative.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// What `percent` of a hundred do not exceed: the nearest rank, never a value between
    /// two. Zero where nothing was measured.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let count = self.sorted.len();
        if count == 0 {
            return 0.0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank is a small positive number"
        )]
        let rank = (percent / 100.0 * count as f64).ceil() as usize;
        self.sorted[rank.clamp(1, count) - 1]
    }

    pub(super) fn p50(&self) -> f64 {
        self.percentile(50.0)
    }

    pub(super) fn p95(&self) -> f64 {
        self.percentile(95.0)
    }

    pub(super) fn p99(&self) -> f64 {
        self.percentile(99.0)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self::of(times.into_iter().map(millis))
    }
}

/// A time in milliseconds.
pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How many in a second.
pub(super) fn per_second(count: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
    let count = count as f64;
    count / time.as_secs_f64().max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let samples = Samples::of((1..=200).rev().map(f64::from));
        assert_eq!((samples.p50(), samples.p95(), samples.p99()), (100.0, 190.0, 198.0));
        let one = Samples::of([7.0]);
        assert_eq!((one.p50(), one.p99(), one.percentile(0.0)), (7.0, 7.0, 7.0));
        assert_eq!(Samples::default().p50(), 0.0);
    }
}
