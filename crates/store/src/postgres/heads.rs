//! Sessions read for the lanes: head, own facts and inbox, of one moment.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use protocol::id::{SessionId, WorkspaceId};
use protocol::time::Timestamp;
use serde::de::DeserializeOwned;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::postgres::connect::Db;
use crate::postgres::fault::Fault;
use crate::rules::head::{Head, Inbox, LeaseState, Pending, QueuedRow, kind_name};

/// One statement, so that all of it is of one moment.
const LOAD: &str = "
    SELECT h.session, h.version, h.workspace, s.record, h.state, h.epoch, h.lease_until, h.holder, h.deaths,
        h.wanted_since, h.waiting, h.inbox_last, i.sequences, i.kinds, i.bodies, h.write_id, h.id
    FROM head h JOIN session s ON s.number = h.session
    LEFT JOIN LATERAL (
        SELECT array_agg(sequence ORDER BY sequence) AS sequences, array_agg(kind ORDER BY sequence) AS kinds,
            array_agg(body ORDER BY sequence) AS bodies
        FROM inbox WHERE session = h.session
    ) i ON true
    WHERE h.id = ANY($1)";

/// A session that was read.
pub(crate) struct Loaded {
    pub(crate) head: Head,
    /// Names the last write.
    pub(crate) write_id: i64,
}

/// These sessions; those that do not exist are left out. A session that cannot be read is an error of its own.
pub(crate) async fn load(
    db: &Db,
    ids: &[&SessionId],
) -> Result<HashMap<SessionId, Result<Loaded, Fault>>, Fault> {
    // An id with a zero byte, which a client may send and no text of PostgreSQL can hold, must not fail the others.
    let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).filter(|id| !id.contains('\0')).collect();
    let rows = db.query(LOAD, &[(&ids, Type::TEXT_ARRAY)]).await?;
    let loaded = rows.iter().map(|row| {
        let id = SessionId::from_text(row.get::<_, String>(16));
        (id, loaded(row))
    });
    Ok(loaded.collect())
}

fn loaded(row: &Row) -> Result<Loaded, Fault> {
    let lease = LeaseState {
        epoch: unsigned(row, 5),
        until: row.get::<_, Option<i64>>(6).map(Timestamp::from_micros),
        holder: row.get(7),
        deaths: u32::try_from(row.get::<_, i32>(8)).unwrap_or_default(),
        wanted_since: row.get::<_, Option<i64>>(9).map(Timestamp::from_micros),
        waiting: row.get::<_, Option<&str>>(10).map(serde_json::from_str).transpose()?,
    };
    let head = Head {
        number: row.get(0),
        version: unsigned(row, 1),
        workspace: WorkspaceId::from_text(row.get::<_, String>(2)),
        record: Arc::new(json(row, 3)?),
        state: json(row, 4)?,
        lease,
        inbox_last: unsigned(row, 11),
        inbox: Some(inbox(row)?),
        pending: Pending::default(),
    };
    Ok(Loaded { head, write_id: row.get(15) })
}

fn inbox(row: &Row) -> Result<Inbox, Fault> {
    let mut inbox = Inbox::default();
    let Some(sequences) = row.get::<_, Option<Vec<i64>>>(12) else { return Ok(inbox) };
    let (kinds, bodies): (Vec<&str>, Vec<&str>) = (row.get(13), row.get(14));
    for ((sequence, kind), body) in sequences.into_iter().zip(kinds).zip(bodies) {
        let queued = QueuedRow {
            sequence: u64::try_from(sequence).unwrap_or_default(),
            kind: kind_name(kind),
            json: Bytes::copy_from_slice(body.as_bytes()),
        };
        inbox.push(serde_json::from_str(body)?, queued);
    }
    Ok(inbox)
}

/// A column that holds JSON text.
pub(crate) fn json<T: DeserializeOwned>(row: &Row, column: usize) -> Result<T, Fault> {
    Ok(serde_json::from_str(row.get(column))?)
}

/// A column of text, as bytes.
pub(crate) fn text(row: &Row, column: usize) -> Bytes {
    Bytes::copy_from_slice(row.get::<_, &str>(column).as_bytes())
}

/// A column whose number is never negative.
pub(crate) fn unsigned(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).unwrap_or_default()
}

/// A number on its way into the database.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
