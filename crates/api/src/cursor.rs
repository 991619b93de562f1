//! Page cursors: `page_` and base64url of a small JSON text.
//!
//! A cursor says after which row a page begins, of which list and in which order. It carries no right to see
//! anything: the workspace comes from the key. On the wire but opaque: the form may change with the version, and a
//! cursor of another version is refused like any other text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::parse::Invalid;
use protocol::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::{Order, TimeBounds};

use crate::error::Error;
use crate::query::Query;

const PREFIX: &str = "page_";
/// Raised when the form changes.
const VERSION: u8 = 1;
/// The longest cursor that is looked at. Ours are far shorter.
const CHARS_MAX: usize = 1_024;

/// A place between two rows of a list that is sorted by time of making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowCursor {
    #[serde(rename = "v")]
    version: u8,
    /// The list it belongs to, with the id of the owner if the list has one.
    #[serde(rename = "l")]
    list: String,
    #[serde(rename = "o")]
    order: Direction,
    /// True if the page ends before the row instead of beginning after it.
    #[serde(rename = "b", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_backward: bool,
    /// The row's time.
    #[serde(rename = "t")]
    pub(crate) at: i64,
    /// The row's id, or its version as text.
    #[serde(rename = "i")]
    pub(crate) id: String,
}

/// A place in the list of a session's events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventCursor {
    #[serde(rename = "v")]
    version: u8,
    /// The session.
    #[serde(rename = "s")]
    session: String,
    #[serde(rename = "o")]
    order: Direction,
    /// Ascending: the last position of the log that was read. Descending: the lowest position already shown, or, while
    /// queued events are still shown, one above the last position that the log had when the walk began.
    #[serde(rename = "p")]
    pub(crate) position: u64,
    /// The id of the last queued event that was shown. Ascending: what was queued with an id up to this one was
    /// shown. Descending, while queued events are shown: what was queued with this id or a higher one was shown.
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub(crate) queued: Option<String>,
    /// The time of the row at `position`, if the page ended with a logged event: a range of time must hold it.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<i64>,
}

/// [`Order`] as a cursor writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Asc,
    Desc,
}

impl From<Order> for Direction {
    fn from(order: Order) -> Self {
        match order {
            Order::Asc => Self::Asc,
            Order::Desc => Self::Desc,
        }
    }
}

impl RowCursor {
    /// The place after a row.
    pub(crate) fn after(list: &str, order: Order, at: Timestamp, id: &str) -> Self {
        Self {
            version: VERSION,
            list: list.to_owned(),
            order: order.into(),
            is_backward: false,
            at: at.as_micros(),
            id: id.to_owned(),
        }
    }

    /// The place before a row.
    pub(crate) fn before(list: &str, order: Order, at: Timestamp, id: &str) -> Self {
        Self { is_backward: true, ..Self::after(list, order, at, id) }
    }

    /// The place at the front of the list that `cursor` belongs to, but within the range of time that holds it.
    pub(crate) fn front(list: &str, order: Order, cursor: &Self) -> Self {
        // Nothing was found before the cursor's row, so that the row's own place, its id left out, is at the front.
        let id = match order {
            Order::Asc => "",
            Order::Desc => "~",
        };
        Self::after(list, order, cursor.time(), id)
    }

    /// As the wire shows it.
    pub(crate) fn encode(&self) -> String {
        encode(self)
    }

    /// Takes the `page` parameter of a list.
    pub(crate) fn take(
        query: &mut Query,
        list: &str,
        order: Order,
        times: &TimeBounds,
    ) -> Result<Option<Self>, Error> {
        let Some(text) = query.text("page")? else { return Ok(None) };
        let cursor: Self = decode(&text)?;
        if cursor.version != VERSION || cursor.list != list {
            return Err(not_a_cursor());
        }
        refuse_other_order(cursor.order, order)?;
        refuse_outside(times, Timestamp::from_micros(cursor.at))?;
        Ok(Some(cursor))
    }

    /// The row's time.
    pub(crate) fn time(&self) -> Timestamp {
        Timestamp::from_micros(self.at)
    }
}

impl EventCursor {
    /// A place in a session's events.
    pub(crate) fn new(
        session: &str,
        order: Order,
        position: u64,
        queued: Option<String>,
        at: Option<Timestamp>,
    ) -> Self {
        Self {
            version: VERSION,
            session: session.to_owned(),
            order: order.into(),
            position,
            queued,
            at: at.map(Timestamp::as_micros),
        }
    }

    /// As the wire shows it.
    pub(crate) fn encode(&self) -> String {
        encode(self)
    }

    /// Takes the `page` parameter of a list of events.
    pub(crate) fn take(
        query: &mut Query,
        session: &str,
        order: Order,
        times: &TimeBounds,
    ) -> Result<Option<Self>, Error> {
        let Some(text) = query.text("page")? else { return Ok(None) };
        let cursor: Self = decode(&text)?;
        if cursor.version != VERSION || cursor.session != session {
            return Err(not_a_cursor());
        }
        refuse_other_order(cursor.order, order)?;
        if let Some(at) = cursor.at {
            refuse_outside(times, Timestamp::from_micros(at))?;
        }
        Ok(Some(cursor))
    }
}

fn encode(cursor: &impl Serialize) -> String {
    let json = serde_json::to_vec(cursor).expect("a cursor is plain data");
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
}

fn decode<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    let body = text.strip_prefix(PREFIX).filter(|body| body.len() <= CHARS_MAX).ok_or_else(not_a_cursor)?;
    let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| not_a_cursor())?;
    serde_json::from_slice(&json).map_err(|_| not_a_cursor())
}

fn refuse_other_order(cursor: Direction, order: Order) -> Result<(), Error> {
    if cursor == order.into() {
        return Ok(());
    }
    Err(Invalid::new("page", "belongs to the same list in the other `order`").into())
}

fn refuse_outside(times: &TimeBounds, at: Timestamp) -> Result<(), Error> {
    if times.contain(at) {
        return Ok(());
    }
    Err(Invalid::new("page", "lies outside the given `created_at` range").into())
}

fn not_a_cursor() -> Error {
    Invalid::new("page", "must be a cursor that an earlier page of this list gave").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        Timestamp::from_micros(7)
    }

    fn take(page: &str, list: &str, order: Order, times: &TimeBounds) -> Result<Option<RowCursor>, Error> {
        RowCursor::take(&mut Query::parse(Some(&format!("page={page}"))).expect("parses"), list, order, times)
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_made() {
        let cursor = RowCursor::before("sessions", Order::Desc, at(), "sesn_1");
        let taken =
            take(&cursor.encode(), "sessions", Order::Desc, &TimeBounds::default()).expect("accepted");
        assert_eq!(taken, Some(cursor));
    }

    #[test]
    fn a_cursor_of_another_list_order_or_range_is_refused() {
        let page = RowCursor::after("sessions", Order::Desc, at(), "sesn_1").encode();
        let any = TimeBounds::default();
        assert!(take(&page, "agents", Order::Desc, &any).is_err());
        assert!(take(&page, "sessions", Order::Asc, &any).is_err());
        let later = TimeBounds { gt: Some(at()), ..any };
        assert!(take(&page, "sessions", Order::Desc, &later).is_err());
    }

    #[test]
    fn text_that_is_no_cursor_is_refused() {
        for page in ["", "page_", "page_!!", "page_e30", "sesn_1", "page_bnVsbA", &"page_A".repeat(1_000)] {
            assert!(take(page, "sessions", Order::Desc, &TimeBounds::default()).is_err(), "{page}");
        }
    }
}
