//! What a response's head says of the provider's limits. Reads headers, decides nothing.
//!
//! | wire | remaining | full again | limit |
//! |---|---|---|---|
//! | Messages | `anthropic-ratelimit-<what>-remaining` | `…-reset`, an RFC 3339 time | `…-limit` |
//! | chat completions | `x-ratelimit-remaining-<what>` | `x-ratelimit-reset-<what>`, a span such as `6m0s` | `x-ratelimit-limit-<what>` |
//!
//! Every provider sends some of them or none. What cannot be read is as good as not there.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// No figure says more about the future; some providers count by the day.
const RESET_MAX: Duration = Duration::from_secs(3600);

/// The figures of one response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// Requests.
    pub(super) requests: Option<Rate>,
    /// Tokens, of whatever kinds the provider counts.
    pub(super) tokens: Vec<Rate>,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// What may be used up to the reset. Counts what the whole account has used.
    pub(super) remaining: u64,
    /// How long until it is full again.
    pub(super) resets_in: Duration,
    /// What it is then.
    pub(super) limit: Option<u64>,
}

impl Rates {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let anthropic = |what: &str| {
            Some(Rate {
                remaining: number(headers, &format!("anthropic-ratelimit-{what}-remaining"))?,
                resets_in: until(headers, text(headers, &format!("anthropic-ratelimit-{what}-reset"))?)?,
                limit: number(headers, &format!("anthropic-ratelimit-{what}-limit")),
            })
        };
        let openai = |what: &str| {
            Some(Rate {
                remaining: number(headers, &format!("x-ratelimit-remaining-{what}"))?,
                resets_in: span(text(headers, &format!("x-ratelimit-reset-{what}"))?)?,
                limit: number(headers, &format!("x-ratelimit-limit-{what}")),
            })
        };
        Self {
            requests: anthropic("requests").or_else(|| openai("requests")),
            tokens: ["tokens", "input-tokens", "output-tokens"]
                .into_iter()
                .filter_map(anthropic)
                .chain(openai("tokens"))
                .collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_none() && self.tokens.is_empty()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A count. Some providers write it with a fraction, and a negative one where an account is over its limit.
fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    let value: f64 = text(headers, name)?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's cast saturates")]
    value.is_finite().then_some(value as u64)
}

/// How long until a time. It counts from the response's own `date`, so that no clock is needed.
fn until(headers: &HeaderMap, time: &str) -> Option<Duration> {
    let now = jiff::fmt::rfc2822::parse(text(headers, "date")?).ok()?.timestamp();
    let then: jiff::Timestamp = time.parse().ok()?;
    let seconds = then.duration_since(now).as_secs_f64().max(0.0);
    Duration::try_from_secs_f64(seconds).ok().map(|span| span.min(RESET_MAX))
}

/// A span as Go writes it: `1s`, `6m0s`, `20ms`, `1h2m3.5s`. A bare number is in seconds.
fn span(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok().map(|span| span.min(RESET_MAX));
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let number: f64 = number.parse().ok()?;
        seconds += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok().map(|span| span.min(RESET_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(pairs: &[(&'static str, &'static str)]) -> Rates {
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        Rates::read(&headers)
    }

    fn rate(remaining: u64, seconds: u64, limit: Option<u64>) -> Rate {
        Rate { remaining, resets_in: Duration::from_secs(seconds), limit }
    }

    #[test]
    fn the_figures_of_the_messages_wire_count_from_the_responses_own_date() {
        let read = rates(&[
            ("date", "Mon, 23 Nov 2026 08:00:00 GMT"),
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "3"),
            ("anthropic-ratelimit-requests-reset", "2026-11-23T08:00:12Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            ("anthropic-ratelimit-input-tokens-reset", "2026-11-23T09:00:30+01:00"),
            ("anthropic-ratelimit-output-tokens-remaining", "8000"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-11-23T07:59:59Z"),
        ]);
        let expected = Rates {
            requests: Some(rate(3, 12, Some(50))),
            tokens: vec![rate(0, 30, None), rate(8000, 0, None)],
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn the_figures_of_chat_completions_are_read() {
        let read = rates(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        assert_eq!(
            read,
            Rates { requests: Some(rate(59, 1, Some(60))), tokens: vec![rate(149_984, 360, None)] }
        );
    }

    #[test]
    fn spans_are_read_in_every_form() {
        for (text, expected) in [
            ("1s", Some(1_000)),
            ("20ms", Some(20)),
            ("6m0s", Some(360_000)),
            ("2m59.56s", Some(179_560)),
            ("1h0m3s", Some(3_600_000)),
            ("0.5", Some(500)),
            ("7", Some(7_000)),
            ("-1", Some(0)),
            ("soon", None),
            ("5x", None),
            ("5", Some(5_000)),
            ("1m5", None),
        ] {
            assert_eq!(span(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_there() {
        assert!(rates(&[]).is_empty());
        // Without a date a time says nothing.
        assert!(
            rates(&[
                ("anthropic-ratelimit-requests-remaining", "3"),
                ("anthropic-ratelimit-requests-reset", "2026-11-23T08:00:12Z"),
            ])
            .is_empty()
        );
        assert!(
            rates(&[("x-ratelimit-remaining-requests", "few"), ("x-ratelimit-reset-requests", "1s")])
                .is_empty()
        );
        let over = rates(&[("x-ratelimit-remaining-requests", "-5"), ("x-ratelimit-reset-requests", "1s")]);
        assert_eq!(over.requests, Some(rate(0, 1, None)));
    }
}
