//! Slices of a log, a log folded anew, and what a follower has not been shown yet.

use protocol::event::Event;
use protocol::position::Position;
use session::State;

use crate::log::{Order, Slice, Stored};
use crate::memory::sessions::Kept;
use crate::rules::catch_up::{BYTES, EVENTS, Found, Logged, Progress, Start, Waited};
use crate::rules::head::EventRow;

pub(super) fn events(kept: &Kept, slice: &Slice) -> Vec<Stored> {
    let Slice { after, until, order, limit, bytes_max, kinds, times, private } = slice;
    let is_in = |row: &&EventRow| {
        row.position > *after
            && until.is_none_or(|until| row.position <= until)
            && kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| **kind == *row.kind))
            && times.contain(row.at)
            && (*private || !row.is_private)
    };
    let mut found: Vec<&EventRow> = kept.events.iter().filter(is_in).collect();
    if *order == Order::Desc {
        found.reverse();
    }
    let mut size_bytes = 0;
    let fits = |(index, row): &(usize, &EventRow)| {
        size_bytes += row.json.len();
        size_bytes <= *bytes_max || *index == 0
    };
    let fitting = found.into_iter().take(*limit).enumerate().take_while(fits);
    fitting.map(|(_, row)| stored(row)).collect()
}

fn stored(row: &EventRow) -> Stored {
    Stored {
        position: Some(row.position),
        kind: row.kind.clone(),
        processed_at: Some(row.at),
        json: row.json.clone(),
    }
}

pub(super) fn inbox(kept: &Kept) -> Vec<Stored> {
    let rows = kept.face.inbox.iter();
    rows.map(|row| Stored {
        position: None,
        kind: row.kind.clone(),
        processed_at: None,
        json: row.json.clone(),
    })
    .collect()
}

pub(super) fn rebuild(kept: &Kept) -> State {
    let (record, kept_state) = (&kept.face.record, &kept.face.state);
    let mut state =
        State::new(kept_state.thread_id.clone(), record.agent.spec.name.clone(), record.created_at);
    for row in &kept.events {
        let event = read(&row.json);
        state.apply(&event.id, &event.body, row.at);
    }
    for row in &kept.face.inbox {
        state.queued.add(&read(&row.json).body);
    }
    state
}

fn read(json: &[u8]) -> Event {
    serde_json::from_slice(json).expect("written here")
}

pub(super) fn start(kept: &Kept) -> Start {
    Start {
        session: kept.face.number,
        head: kept.face.state.head,
        inbox_last: kept.face.inbox_last,
        inbox_first: kept.face.inbox.first().map(|row| row.sequence),
    }
}

pub(super) fn find(kept: &Kept, progress: Progress) -> Found {
    let Progress { floor, waited, cursor, .. } = progress;
    let mut logged: Vec<Logged> = Vec::new();
    let mut size_bytes = 0;
    for row in after(kept, cursor).iter().take(EVENTS) {
        let json = (!row.is_private).then(|| row.json.clone());
        size_bytes += json.as_ref().map_or(0, |json| json.len());
        let EventRow { position, append_end, taken, .. } = *row;
        logged.push(Logged { position, kind: row.kind.clone(), append_end, taken, json });
        if size_bytes > BYTES {
            break;
        }
    }
    let cut_taken = match Found::cut(&logged) {
        Some((from, until)) => {
            let rest = after(kept, from).iter().take_while(|row| row.position <= until);
            rest.filter_map(|row| row.taken).max().unwrap_or(0)
        }
        None => 0,
    };
    let taken = after(kept, floor).iter().filter_map(|row| {
        let sequence = row.taken.filter(|sequence| *sequence > waited)?;
        Some(Waited { sequence, kind: row.kind.clone(), json: row.json.clone() })
    });
    let waiting = kept.face.inbox.iter().filter(|row| row.sequence > waited).map(|row| Waited {
        sequence: row.sequence,
        kind: row.kind.clone(),
        json: row.json.clone(),
    });
    let copies = taken.chain(waiting).collect();
    Found { head: kept.face.state.head, inbox_last: kept.face.inbox_last, logged, cut_taken, copies }
}

/// The events after that place: positions count from one without a gap.
fn after(kept: &Kept, position: Position) -> &[EventRow] {
    let skipped = usize::try_from(position.0).unwrap_or(usize::MAX);
    kept.events.get(skipped..).unwrap_or_default()
}
