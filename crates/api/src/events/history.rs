//! Walking a session's events page by page, while events are appended and queued ones are taken up.
//!
//! Ascending, the log comes first, by position, then what is queued; descending, the other way round. A walk shows no
//! event twice and leaves none out that was there when it began. The log alone would be simple: positions never
//! change. But a queued event that was shown may be in the log when the next page is read, and one that was not shown
//! yet may have left the inbox. Both are told by their ids: ids grow, so that one id divides what was shown of the
//! queue from what was not.
//!
//! ```text
//!   ascending:   log after `position`, without what was shown as queued ──▶ queued after `queued`
//!   descending:  queued before `queued`, wherever it is now ──▶ log before `position`
//! ```

use bytes::Bytes;
use protocol::id::SessionId;
use protocol::position::Position;
use serde::Deserialize;
use store::{Order, Slice, Store, Stored, TimeBounds};

use crate::cursor::EventCursor;
use crate::error::Error;

/// The kinds that wait in the inbox. What else clients send enters the log at once.
const QUEUED_KINDS: [&str; 4] =
    ["user.message", "user.interrupt", "user.tool_confirmation", "system.message"];
/// How many bytes of events one page holds; always at least one event.
const PAGE_BYTES_MAX: usize = store::log::SLICE_BYTES;

/// Which events are asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) order: Order,
    pub(crate) limit: usize,
    /// Empty for all.
    pub(crate) kinds: Vec<String>,
    pub(crate) times: TimeBounds,
    pub(crate) cursor: Option<EventCursor>,
}

/// One page and where the next one begins.
pub(crate) async fn read(
    store: &Store,
    id: &SessionId,
    asked: Asked,
) -> Result<(Vec<Stored>, Option<EventCursor>), Error> {
    let walk = Walk { store, id, asked, shown: Vec::new(), bytes: 0 };
    match walk.asked.order {
        Order::Asc => walk.ascend().await,
        Order::Desc => walk.descend().await,
    }
}

struct Walk<'a> {
    store: &'a Store,
    id: &'a SessionId,
    asked: Asked,
    shown: Vec<Stored>,
    bytes: usize,
}

type Page = (Vec<Stored>, Option<EventCursor>);

impl Walk<'_> {
    async fn ascend(mut self) -> Result<Page, Error> {
        let cursor = self.asked.cursor.take();
        let mut position = Position(cursor.as_ref().map_or(0, |cursor| cursor.position));
        let mut queued = cursor.and_then(|cursor| cursor.queued);
        loop {
            let slice = Slice { after: position, ..self.slice() };
            let (rows, inbox) = self.store.get_history(self.id, slice).await?;
            let is_end = rows.is_empty();
            for row in rows {
                if self.is_full() {
                    return Ok(self.until(position, queued));
                }
                position = row.position.unwrap_or(position);
                let was_shown = is_queued_kind(&row) && queued.is_some() && id_of(&row) <= queued;
                if !was_shown {
                    self.show(row);
                }
            }
            if !is_end {
                continue;
            }
            for row in self.fitting(inbox) {
                let id = id_of(&row);
                if id <= queued {
                    continue;
                }
                if self.is_full() {
                    return Ok(self.until(position, queued));
                }
                self.show(row);
                queued = id;
            }
            return Ok((self.shown, None));
        }
    }

    async fn descend(mut self) -> Result<Page, Error> {
        let cursor = self.asked.cursor.take();
        let mut position = match &cursor {
            Some(cursor) => Position(cursor.position),
            None => Position::START,
        };
        let queued = cursor.as_ref().and_then(|cursor| cursor.queued.clone());
        if cursor.is_none() || queued.is_some() {
            let rest = match &cursor {
                // The head and the inbox at one moment: what was queued then is above that head for good.
                None => {
                    let newest = Slice { order: Order::Desc, limit: 1, private: true, ..Slice::default() };
                    let (newest, inbox) = self.store.get_history(self.id, newest).await?;
                    position = newest.first().and_then(|row| row.position).unwrap_or_default().next();
                    self.fitting(inbox).rev().collect()
                }
                Some(_) => self.left_of_queue(position, queued.as_deref()).await?,
            };
            let mut last = queued;
            for row in rest {
                if self.is_full() {
                    return Ok(self.until(position, last));
                }
                last = id_of(&row);
                self.show(row);
            }
        }
        loop {
            let until = Position(position.0.saturating_sub(1));
            if until == Position::START {
                return Ok((self.shown, None));
            }
            let slice = Slice { until: Some(until), ..self.slice() };
            let rows = self.store.get_events(self.id, slice).await?;
            if rows.is_empty() {
                return Ok((self.shown, None));
            }
            for row in rows {
                if self.is_full() {
                    return Ok(self.until(position, None));
                }
                position = row.position.unwrap_or(position);
                self.show(row);
            }
        }
    }

    /// What of the queue of a descending walk was not shown yet, youngest first: it is in the inbox still, or above
    /// the position at which the walk began.
    async fn left_of_queue(&self, position: Position, queued: Option<&str>) -> Result<Vec<Stored>, Error> {
        let kinds =
            QUEUED_KINDS.iter().map(|kind| (*kind).to_owned()).filter(|kind| self.wants(kind)).collect();
        let mut slice =
            Slice { after: Position(position.0.saturating_sub(1)), kinds: Some(kinds), ..Slice::default() };
        let mut rest = Vec::new();
        loop {
            let (rows, inbox) = self.store.get_history(self.id, slice.clone()).await?;
            let is_end = rows.is_empty();
            slice.after = rows.last().and_then(|row| row.position).unwrap_or(slice.after);
            rest.extend(rows.into_iter().filter(|row| id_of(row).as_deref() < queued));
            if is_end {
                rest.extend(self.fitting(inbox).filter(|row| id_of(row).as_deref() < queued));
                rest.sort_by_cached_key(|row| std::cmp::Reverse(id_of(row)));
                return Ok(rest);
            }
        }
    }

    /// A slice with the filters of the walk.
    fn slice(&self) -> Slice {
        Slice {
            order: self.asked.order,
            // One more than fits, so that the end of the log is seen together with its last page.
            limit: self.asked.limit + 1 - self.shown.len(),
            bytes_max: PAGE_BYTES_MAX.saturating_sub(self.bytes).max(1),
            kinds: (!self.asked.kinds.is_empty()).then(|| self.asked.kinds.clone()),
            times: self.asked.times,
            ..Slice::default()
        }
    }

    /// The queued events that are asked for. They have no time yet, so that a range of time leaves them out.
    fn fitting(&self, inbox: Vec<Stored>) -> impl DoubleEndedIterator<Item = Stored> + use<> {
        let is_timeless = self.asked.times == TimeBounds::default();
        let kinds = self.asked.kinds.clone();
        inbox.into_iter().filter(move |row| is_timeless && fits(&kinds, &row.kind))
    }

    fn wants(&self, kind: &str) -> bool {
        fits(&self.asked.kinds, kind)
    }

    fn is_full(&self) -> bool {
        self.shown.len() >= self.asked.limit || self.bytes >= PAGE_BYTES_MAX
    }

    fn show(&mut self, row: Stored) {
        self.bytes += row.json.len();
        self.shown.push(row);
    }

    /// The page as it is, with more to come.
    fn until(self, position: Position, queued: Option<String>) -> Page {
        let at = self.shown.last().and_then(|row| row.processed_at);
        let next = EventCursor::new(self.id.as_str(), self.asked.order, position.0, queued, at);
        (self.shown, Some(next))
    }
}

fn fits(kinds: &[String], kind: &str) -> bool {
    kinds.is_empty() || kinds.iter().any(|wanted| wanted == kind)
}

fn is_queued_kind(row: &Stored) -> bool {
    QUEUED_KINDS.contains(&&*row.kind)
}

/// The id in an event's JSON text.
fn id_of(row: &Stored) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    let named: Result<Named, _> = serde_json::from_slice::<Named>(Bytes::as_ref(&row.json));
    named.ok().map(|named| named.id)
}
