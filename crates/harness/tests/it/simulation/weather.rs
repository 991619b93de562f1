//! What befalls calls of the store.

use std::sync::Arc;
use std::time::Duration;

use store::{Asked, Fate, Luck, Weather};

use super::dice::{Climate, Dice, Misfortunes};

pub(super) struct StoreWeather {
    dice: Dice,
    climate: Climate,
    misfortunes: Arc<Misfortunes>,
}

impl StoreWeather {
    pub(super) fn new(dice: Dice, climate: Climate, misfortunes: Arc<Misfortunes>) -> Self {
        Self { dice, climate, misfortunes }
    }

    fn strikes(&self, name: &'static str, one_in: u64) -> bool {
        self.misfortunes.strikes(name, &self.dice, one_in)
    }

    fn delay(&self) -> Duration {
        if self.strikes("calls of the store that took as long as a lease", self.climate.stalled) {
            return self.dice.millis(20_000);
        }
        self.dice.millis(self.climate.delay)
    }
}

impl Weather for StoreWeather {
    fn next(&self, asked: Asked) -> Fate {
        if self.misfortunes.has_ended() {
            return Fate { way_there: self.dice.millis(3), way_back: self.dice.millis(3), ..Fate::default() };
        }
        let luck = if self.strikes("calls of the store that never arrived", self.climate.refused) {
            Luck::Refused
        } else if self.strikes("replies of the store that were lost", self.climate.unheard) {
            Luck::Unheard
        } else {
            Luck::Fair
        };
        let is_decided_twice =
            asked == Asked::Write && self.strikes("changes that were decided twice", self.climate.twice);
        Fate { way_there: self.delay(), luck, way_back: self.delay(), is_decided_twice }
    }
}
