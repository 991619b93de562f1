//! Reading query strings: bracketed arrays, ranges of time, booleans, limits.
//!
//! `types[]=a&types[]=b`, the same with `%5B%5D`, and `types=a&types=b` are one spelling. A parameter that is not
//! known is refused, because a filter that is ignored in silence gives wrong answers; the only exception is `beta`,
//! which older clients append to every address.

use std::ops::RangeInclusive;

use protocol::id::ID_CHARS_MAX;
use protocol::parse::{Invalid, clipped};
use protocol::time::Timestamp;
use store::{Order, TimeBounds};

use crate::error::Error;

type Parsed<T> = Result<T, Error>;

/// How many parameters one address may carry. The longest list that has a meaning is 100 values (`event_deltas[]`);
/// this leaves room for a refusal that names the rule.
const PARAMETERS_MAX: usize = 1_000;

/// The parameters of an address that nobody has read yet.
#[derive(Debug)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Takes a query string apart.
    pub(crate) fn parse(raw: Option<&str>) -> Parsed<Self> {
        let mut pairs = Vec::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == PARAMETERS_MAX {
                return Err(
                    Invalid::new("query", format!("must have at most {PARAMETERS_MAX} parameters")).into()
                );
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let mut name = decode(name)?;
            if let Some(bare) = name.strip_suffix("[]") {
                name.truncate(bare.len());
            }
            if name != "beta" {
                pairs.push((name, decode(value)?));
            }
        }
        Ok(Self { pairs })
    }

    /// All values of a parameter, in order.
    pub(crate) fn texts(&mut self, name: &str) -> Vec<String> {
        self.pairs.extract_if(.., |(found, _)| found == name).map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may be given once.
    pub(crate) fn text(&mut self, name: &str) -> Parsed<Option<String>> {
        let mut values = self.texts(name);
        if values.len() > 1 {
            return Err(Invalid::new(name, "must be given only once").into());
        }
        Ok(values.pop())
    }

    /// An id.
    pub(crate) fn id(&mut self, name: &str) -> Parsed<Option<String>> {
        match self.text(name)? {
            Some(id) if id.is_empty() || id.chars().count() > ID_CHARS_MAX => {
                Err(Invalid::new(name, format!("must be 1 to {ID_CHARS_MAX} characters")).into())
            }
            id => Ok(id),
        }
    }

    /// `true` or `false`; false if not given.
    pub(crate) fn flag(&mut self, name: &str) -> Parsed<bool> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Invalid::new(name, "must be `true` or `false`").into()),
        }
    }

    /// A whole number in a range.
    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Parsed<Option<i64>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) if *range.end() == i64::MAX => {
                Err(Invalid::new(name, format!("must be a whole number of at least {}", range.start()))
                    .into())
            }
            Ok(_) | Err(_) => {
                let rule = format!("must be a whole number from {} to {}", range.start(), range.end());
                Err(Invalid::new(name, rule).into())
            }
        }
    }

    /// How many rows a page has at most.
    pub(crate) fn limit(&mut self, default: usize, max: usize) -> Parsed<usize> {
        let limit = self.integer("limit", 1..=i64::try_from(max).expect("page sizes are small"))?;
        Ok(limit.map_or(default, |limit| usize::try_from(limit).expect("the range starts at 1")))
    }

    /// Values that must each be one of a closed set.
    pub(crate) fn some_of<'a>(&mut self, name: &str, allowed: &'a [&'static str]) -> Parsed<Vec<&'a str>> {
        self.texts(name)
            .iter()
            .map(|value| {
                allowed.iter().find(|known| *known == value).copied().ok_or_else(|| {
                    let rule = format!("must be one of {}, not `{}`", allowed.join(", "), clipped(value));
                    Invalid::new(name, rule).into()
                })
            })
            .collect()
    }

    /// The direction of a list.
    pub(crate) fn order(&mut self, default: Order) -> Parsed<Order> {
        match self.text("order")?.as_deref() {
            None => Ok(default),
            Some("asc") => Ok(Order::Asc),
            Some("desc") => Ok(Order::Desc),
            Some(_) => Err(Invalid::new("order", "must be `asc` or `desc`").into()),
        }
    }

    /// A range of time, `name[gt]` and so on.
    pub(crate) fn times(&mut self, name: &str) -> Parsed<TimeBounds> {
        Ok(TimeBounds {
            gt: self.time(&format!("{name}[gt]"))?,
            gte: self.time(&format!("{name}[gte]"))?,
            lt: self.time(&format!("{name}[lt]"))?,
            lte: self.time(&format!("{name}[lte]"))?,
        })
    }

    fn time(&mut self, name: &str) -> Parsed<Option<Timestamp>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        // A `+` that was not encoded has become a space.
        match Timestamp::parse(&text.replace(' ', "+")) {
            Some(time) => Ok(Some(time)),
            None => Err(Invalid::new(name, "must be an RFC 3339 time such as `2026-11-20T09:00:00Z`").into()),
        }
    }

    /// Refuses what nobody read.
    pub(crate) fn finish(self) -> Parsed<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) => Err(Invalid::new(clipped(name), "unknown query parameter").into()),
        }
    }
}

/// Percent-decoding of one name or value; `+` is a space.
fn decode(text: &str) -> Parsed<String> {
    let refusal = || Error::from(Invalid::new("query", "is not valid percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(refusal()),
                }
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| refusal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(raw: &str) -> Query {
        Query::parse(Some(raw)).expect("parses")
    }

    #[test]
    fn the_three_spellings_of_an_array_are_one() {
        let mut query = query("types[]=a&types%5B%5D=b&types=c&beta=true");
        assert_eq!(query.texts("types"), ["a", "b", "c"]);
        assert!(query.finish().is_ok());
    }

    #[test]
    fn a_time_may_have_an_offset_and_a_bare_plus() {
        let mut query =
            query("created_at%5Bgte%5D=2026-11-20T10:00:00+01:00&created_at[lt]=2026-11-20T10:00:00%2B01:00");
        let times = query.times("created_at").expect("parses");
        assert_eq!(times.gte, Timestamp::parse("2026-11-20T09:00:00Z"));
        assert_eq!(times.lt, times.gte);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert!(query("limit=0").limit(20, 100).is_err());
        assert!(query("limit=101").limit(20, 100).is_err());
        assert!(query("limit=ten").limit(20, 100).is_err());
        assert!(query("limit=1&limit=2").limit(20, 100).is_err());
        assert!(query("include_archived=yes").flag("include_archived").is_err());
        assert!(query("order=up").order(Order::Asc).is_err());
        assert!(query("created_at[gt]=yesterday").times("created_at").is_err());
        assert!(query("statuses=idle&statuses=asleep").some_of("statuses", &["idle"]).is_err());
        assert!(query("colour=red").finish().is_err());
        assert!(Query::parse(Some("a=%zz")).is_err());
        assert!(Query::parse(Some("a=%ff")).is_err());
    }
}
