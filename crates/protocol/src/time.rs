//! Points in time as the wire shows them: RFC 3339, UTC, microseconds.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A point given in microseconds since the epoch, clamped to what RFC 3339 can show (years -9999 to 9999).
    pub fn from_micros(micros: i64) -> Self {
        let least = jiff::Timestamp::MIN.as_microsecond();
        let most = jiff::Timestamp::MAX.as_microsecond();
        Self(micros.clamp(least, most))
    }

    /// Microseconds since the epoch.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339 with `Z` or a numeric offset; `None` if the text is not a point in time.
    pub fn parse(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        Some(Self(at.as_microsecond()))
    }

    /// Seconds from `earlier` to `self`, zero if the clock went backwards.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        micros_as_seconds(self.0.saturating_sub(earlier.0).max(0))
    }
}

/// Microseconds as the wire's floating seconds.
pub fn micros_as_seconds(micros: i64) -> f64 {
    micros as f64 / 1_000_000.0
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = jiff::Timestamp::from_microsecond(self.0).expect("the constructor clamps to jiff's range");
        write!(formatter, "{at:.6}")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not an RFC 3339 point in time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_in_time_shows_six_digits_and_z() {
        let at = Timestamp::parse("2026-11-20T10:00:01+01:00").expect("valid");
        assert_eq!(at.to_string(), "2026-11-20T09:00:01.000000Z");
        assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
    }

    #[test]
    fn text_that_is_no_point_in_time_is_refused() {
        assert_eq!(Timestamp::parse("yesterday"), None);
        assert_eq!(Timestamp::parse("2026-11-20"), None);
    }
}
