//! What the lanes write: many sessions in one statement, each only if it still has the version on which its change was
//! decided. A statement commits by itself.

use protocol::time::Timestamp;
use tokio_postgres::types::Type;

use crate::lease::LEASE;
use crate::postgres::connect::Db;
use crate::postgres::fault::Fault;
use crate::postgres::heads::signed;
use crate::rules::head::{EventRow, Head, QueuedRow, status_number};
use crate::rules::leases::micros;
use crate::sessions::SealedToken;

/// The time by the database's clock, unless a test has one of its own.
pub(crate) fn now_sql(now: Option<Timestamp>) -> String {
    match now {
        Some(now) => now.as_micros().to_string(),
        None => "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint".to_owned(),
    }
}

/// A session to be written, and the name of this write.
pub(crate) struct Writing<'a> {
    pub(crate) head: &'a Head,
    pub(crate) write_id: i64,
}

/// How a flush tells the others.
pub(crate) struct Notice<'a> {
    pub(crate) channel: &'a str,
    pub(crate) payload: &'a str,
}

const EVENTS: &str = "
    INSERT INTO event (session, position, kind, is_private, at, append_end, taken, body)
    SELECT e.session, e.position, e.kind, e.is_private, e.at, e.append_end, e.taken, e.body
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::boolean[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::text[]) AS e (session, position, kind, is_private, at, append_end, taken, body)
    JOIN saved ON saved.session = e.session";
const QUEUED: &str = "
    INSERT INTO inbox (session, sequence, kind, body)
    SELECT q.session, q.sequence, q.kind, q.body
    FROM unnest($9::bigint[], $10::bigint[], $11::text[], $12::text[]) AS q (session, sequence, kind, body)
    JOIN saved ON saved.session = q.session";
const HEADS: &str = "
    SELECT * FROM unnest($13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::bigint[], $18::smallint[],
        $19::boolean[], $20::text[], $21::boolean[], $22::boolean[], $23::integer[], $24::text[])
    AS h (session, version, write_id, position, inbox_last, status, wants, state, held, renews, deaths, waiting)";

/// What the rows of a flush have in common, column by column.
#[derive(Default)]
struct Columns<'a> {
    event_session: Vec<i64>,
    event_position: Vec<i64>,
    event_kind: Vec<&'a str>,
    event_is_private: Vec<bool>,
    event_at: Vec<i64>,
    event_append_end: Vec<i64>,
    event_taken: Vec<Option<i64>>,
    event_body: Vec<&'a str>,
    queued_session: Vec<i64>,
    queued_sequence: Vec<i64>,
    queued_kind: Vec<&'a str>,
    queued_body: Vec<&'a str>,
    session: Vec<i64>,
    version: Vec<i64>,
    write_id: Vec<i64>,
    position: Vec<i64>,
    inbox_last: Vec<i64>,
    status: Vec<i16>,
    wants: Vec<bool>,
    state: Vec<String>,
    held: Vec<bool>,
    renews: Vec<bool>,
    deaths: Vec<i32>,
    waiting: Vec<Option<String>>,
    taken_session: Vec<i64>,
    taken_sequence: Vec<i64>,
    record_session: Vec<i64>,
    record_archived_at: Vec<Option<i64>>,
    record: Vec<String>,
    token_session: Vec<i64>,
    token_resource: Vec<&'a str>,
    token: Vec<&'a str>,
    purged_session: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(writings: &[Writing<'a>]) -> Result<Self, Fault> {
        let mut columns = Self::default();
        for Writing { head, write_id } in writings {
            columns.add(head, *write_id)?;
        }
        Ok(columns)
    }

    fn add(&mut self, head: &'a Head, write_id: i64) -> Result<(), Fault> {
        for EventRow { position, kind, is_private, at, append_end, taken, json } in &head.pending.events {
            self.event_session.push(head.number);
            self.event_position.push(signed(position.0));
            self.event_kind.push(kind);
            self.event_is_private.push(*is_private);
            self.event_at.push(at.as_micros());
            self.event_append_end.push(signed(append_end.0));
            self.event_taken.push(taken.map(signed));
            self.event_body.push(utf8(json));
        }
        for QueuedRow { sequence, kind, json } in &head.pending.queued {
            self.queued_session.push(head.number);
            self.queued_sequence.push(signed(*sequence));
            self.queued_kind.push(kind);
            self.queued_body.push(utf8(json));
        }
        for sequence in &head.pending.taken {
            self.taken_session.push(head.number);
            self.taken_sequence.push(signed(*sequence));
        }
        if head.pending.has_new_record || head.version == 0 {
            self.record_session.push(head.number);
            self.record_archived_at.push(head.record.archived_at.map(Timestamp::as_micros));
            self.record.push(serde_json::to_string(&*head.record)?);
        }
        for SealedToken { resource, sealed } in &head.pending.tokens {
            self.token_session.push(head.number);
            self.token_resource.push(resource.as_str());
            self.token.push(sealed);
        }
        if head.pending.purges_tokens {
            self.purged_session.push(head.number);
        }
        self.session.push(head.number);
        self.version.push(signed(head.version));
        self.write_id.push(write_id);
        self.position.push(signed(head.state.head.0));
        self.inbox_last.push(signed(head.inbox_last));
        self.status.push(status_number(head.state.shown_status()));
        self.wants.push(head.state.wants_brain());
        self.state.push(serde_json::to_string(&head.state)?);
        self.held.push(head.lease.until.is_some());
        self.renews.push(head.pending.renews);
        self.deaths.push(i32::try_from(head.lease.deaths).unwrap_or(i32::MAX));
        self.waiting.push(head.lease.waiting.map(|waiting| serde_json::to_string(&waiting)).transpose()?);
        Ok(())
    }

    /// Those of [`EVENTS`], [`QUEUED`] and [`HEADS`].
    fn params(&self) -> Vec<crate::postgres::connect::Param<'_>> {
        vec![
            (&self.event_session, Type::INT8_ARRAY),
            (&self.event_position, Type::INT8_ARRAY),
            (&self.event_kind, Type::TEXT_ARRAY),
            (&self.event_is_private, Type::BOOL_ARRAY),
            (&self.event_at, Type::INT8_ARRAY),
            (&self.event_append_end, Type::INT8_ARRAY),
            (&self.event_taken, Type::INT8_ARRAY),
            (&self.event_body, Type::TEXT_ARRAY),
            (&self.queued_session, Type::INT8_ARRAY),
            (&self.queued_sequence, Type::INT8_ARRAY),
            (&self.queued_kind, Type::TEXT_ARRAY),
            (&self.queued_body, Type::TEXT_ARRAY),
            (&self.session, Type::INT8_ARRAY),
            (&self.version, Type::INT8_ARRAY),
            (&self.write_id, Type::INT8_ARRAY),
            (&self.position, Type::INT8_ARRAY),
            (&self.inbox_last, Type::INT8_ARRAY),
            (&self.status, Type::INT2_ARRAY),
            (&self.wants, Type::BOOL_ARRAY),
            (&self.state, Type::TEXT_ARRAY),
            (&self.held, Type::BOOL_ARRAY),
            (&self.renews, Type::BOOL_ARRAY),
            (&self.deaths, Type::INT4_ARRAY),
            (&self.waiting, Type::TEXT_ARRAY),
        ]
    }
}

fn utf8(json: &[u8]) -> &str {
    std::str::from_utf8(json).expect("JSON is UTF-8")
}

/// Writes sessions that were there before; gives the numbers of those that still had their version. The others are
/// untouched.
pub(crate) async fn save(
    db: &Db,
    writings: &[Writing<'_>],
    notice: &Notice<'_>,
    now: Option<Timestamp>,
) -> Result<Vec<i64>, Fault> {
    let columns = Columns::of(writings)?;
    let (now, lease) = (now_sql(now), micros(LEASE));
    let sql = format!(
        "WITH h AS ({HEADS}), saved AS (
            UPDATE head SET version = head.version + 1, write_id = h.write_id, position = h.position,
                inbox_last = h.inbox_last, status = h.status, wants_brain = h.wants, state = h.state,
                deaths = h.deaths, waiting = h.waiting,
                holder = CASE WHEN h.held THEN head.holder END,
                lease_until = CASE WHEN NOT h.held THEN NULL WHEN h.renews THEN {now} + {lease}
                    ELSE head.lease_until END,
                wanted_since = CASE WHEN h.held OR NOT h.wants THEN NULL
                    ELSE coalesce(head.wanted_since, {now}) END,
                wanted_order = CASE WHEN h.held OR NOT h.wants THEN NULL
                    ELSE coalesce(head.wanted_order, nextval('wanted_order')) END
            FROM h WHERE head.session = h.session AND head.version = h.version
            RETURNING head.session
        ), events AS ({EVENTS}), queued AS ({QUEUED}), taken AS (
            DELETE FROM inbox
            USING unnest($25::bigint[], $26::bigint[]) AS t (session, sequence), saved
            WHERE inbox.session = t.session AND inbox.sequence = t.sequence AND saved.session = t.session
        ), records AS (
            UPDATE session SET archived_at = r.archived_at, record = r.record
            FROM unnest($27::bigint[], $28::bigint[], $29::text[]) AS r (number, archived_at, record), saved
            WHERE session.number = r.number AND saved.session = r.number
        ), purged AS (
            DELETE FROM session_token USING saved
            WHERE session_token.session = saved.session AND saved.session = ANY($35::bigint[])
        ), tokens AS (
            INSERT INTO session_token (session, resource, sealed)
            SELECT t.session, t.resource, t.sealed
            FROM unnest($32::bigint[], $33::text[], $34::text[]) AS t (session, resource, sealed)
            JOIN saved ON saved.session = t.session
            ON CONFLICT (session, resource) DO UPDATE SET sealed = excluded.sealed
        )
        SELECT (SELECT array_agg(session) FROM saved), pg_notify($30, $31)"
    );
    let mut params = columns.params();
    params.extend([
        (&columns.taken_session as _, Type::INT8_ARRAY),
        (&columns.taken_sequence as _, Type::INT8_ARRAY),
        (&columns.record_session as _, Type::INT8_ARRAY),
        (&columns.record_archived_at as _, Type::INT8_ARRAY),
        (&columns.record as _, Type::TEXT_ARRAY),
        (&notice.channel as _, Type::TEXT),
        (&notice.payload as _, Type::TEXT),
        (&columns.token_session as _, Type::INT8_ARRAY),
        (&columns.token_resource as _, Type::TEXT_ARRAY),
        (&columns.token as _, Type::TEXT_ARRAY),
        (&columns.purged_session as _, Type::INT8_ARRAY),
    ]);
    saved(db.write(&sql, &params).await?)
}

/// Writes sessions that are new; gives the numbers of those whose id was not taken.
pub(crate) async fn insert(
    db: &Db,
    writings: &[Writing<'_>],
    notice: &Notice<'_>,
    now: Option<Timestamp>,
) -> Result<Vec<i64>, Fault> {
    let columns = Columns::of(writings)?;
    let records: Vec<_> = writings.iter().map(|writing| &writing.head.record).collect();
    let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
    let workspaces: Vec<&str> = writings.iter().map(|writing| writing.head.workspace.as_str()).collect();
    let agents: Vec<&str> = records.iter().map(|record| record.agent.id.as_str()).collect();
    let versions: Vec<i64> = records.iter().map(|record| record.agent.version).collect();
    let environments: Vec<&str> = records.iter().map(|record| record.environment_id.as_str()).collect();
    let threads: Vec<&str> = writings.iter().map(|writing| writing.head.state.thread_id.as_str()).collect();
    let made: Vec<i64> = records.iter().map(|record| record.created_at.as_micros()).collect();
    let now = now_sql(now);
    let sql = format!(
        "WITH h AS ({HEADS}), n AS (
            SELECT * FROM unnest($13::bigint[], $25::text[], $26::text[], $27::text[], $28::bigint[], $29::text[],
                $30::text[], $31::bigint[], $32::bigint[], $33::text[])
            AS n (number, id, workspace, agent_id, agent_version, environment_id, thread_id, created_at, archived_at,
                record)
        ), made AS (
            INSERT INTO session (number, id, workspace, agent_id, agent_version, environment_id, thread_id, created_at,
                archived_at, record)
            SELECT * FROM n ON CONFLICT DO NOTHING RETURNING number
        ), saved AS (
            INSERT INTO head (session, id, workspace, write_id, position, inbox_last, status, wants_brain, state,
                wanted_since, wanted_order)
            SELECT h.session, n.id, n.workspace, h.write_id, h.position, h.inbox_last, h.status, h.wants, h.state,
                CASE WHEN h.wants THEN {now} END, CASE WHEN h.wants THEN nextval('wanted_order') END
            FROM h JOIN n ON n.number = h.session JOIN made ON made.number = h.session
            RETURNING session
        ), events AS ({EVENTS}), queued AS ({QUEUED}), tokens AS (
            INSERT INTO session_token (session, resource, sealed)
            SELECT t.session, t.resource, t.sealed
            FROM unnest($36::bigint[], $37::text[], $38::text[]) AS t (session, resource, sealed)
            JOIN saved ON saved.session = t.session
        )
        SELECT (SELECT array_agg(session) FROM saved), pg_notify($34, $35)"
    );
    let mut params = columns.params();
    params.extend([
        (&ids as _, Type::TEXT_ARRAY),
        (&workspaces as _, Type::TEXT_ARRAY),
        (&agents as _, Type::TEXT_ARRAY),
        (&versions as _, Type::INT8_ARRAY),
        (&environments as _, Type::TEXT_ARRAY),
        (&threads as _, Type::TEXT_ARRAY),
        (&made as _, Type::INT8_ARRAY),
        (&columns.record_archived_at as _, Type::INT8_ARRAY),
        (&columns.record as _, Type::TEXT_ARRAY),
        (&notice.channel as _, Type::TEXT),
        (&notice.payload as _, Type::TEXT),
        (&columns.token_session as _, Type::INT8_ARRAY),
        (&columns.token_resource as _, Type::TEXT_ARRAY),
        (&columns.token as _, Type::TEXT_ARRAY),
    ]);
    saved(db.write(&sql, &params).await?)
}

/// Removes sessions; gives the numbers of those that still had their version. Their events go in the background: there
/// may be millions, and nobody can reach them any more.
pub(crate) async fn delete(
    db: &Db,
    writings: &[Writing<'_>],
    notice: &Notice<'_>,
    now: Option<Timestamp>,
) -> Result<Vec<i64>, Fault> {
    let numbers: Vec<i64> = writings.iter().map(|writing| writing.head.number).collect();
    let versions: Vec<i64> = writings.iter().map(|writing| signed(writing.head.version)).collect();
    let said: Vec<&str> =
        writings.iter().map(|writing| writing.head.pending.deleted.as_deref().map_or("", utf8)).collect();
    let now = now_sql(now);
    let sql = format!(
        "WITH d AS (
            SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS d (session, version, said)
        ), saved AS (
            DELETE FROM head USING d WHERE head.session = d.session AND head.version = d.version
            RETURNING head.session, head.id, d.said
        ), sessions AS (
            DELETE FROM session USING saved WHERE session.number = saved.session
        ), inboxes AS (
            DELETE FROM inbox USING saved WHERE inbox.session = saved.session
        ), tokens AS (
            DELETE FROM session_token USING saved WHERE session_token.session = saved.session
        ), doomed AS (
            INSERT INTO doomed (session, id, said, deleted_at) SELECT session, id, said, {now} FROM saved
        )
        SELECT (SELECT array_agg(session) FROM saved), pg_notify($4, $5)"
    );
    let params = [
        (&numbers as _, Type::INT8_ARRAY),
        (&versions as _, Type::INT8_ARRAY),
        (&said as _, Type::TEXT_ARRAY),
        (&notice.channel as _, Type::TEXT),
        (&notice.payload as _, Type::TEXT),
    ];
    saved(db.write(&sql, &params).await?)
}

fn saved(rows: Vec<tokio_postgres::Row>) -> Result<Vec<i64>, Fault> {
    let numbers = rows.first().and_then(|row| row.get::<_, Option<Vec<i64>>>(0));
    Ok(numbers.unwrap_or_default())
}

/// Numbers for new sessions.
pub(crate) async fn numbers(db: &Db, count: usize) -> Result<Vec<i64>, Fault> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let sql = "SELECT nextval('session_number') FROM generate_series(1, $1)";
    let rows = db.query(sql, &[(&count, Type::INT8)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Removes some events of deleted sessions, and what is left of those deleted before `forgotten`; gives whether any
/// events may be left.
pub(crate) async fn sweep(db: &Db, forgotten: Timestamp) -> Result<bool, Fault> {
    const EVENTS_AT_ONCE: i64 = 2_000;
    const REMOVE: &str = "
        WITH next AS (
            SELECT session FROM doomed WHERE NOT is_empty ORDER BY session LIMIT 1 FOR UPDATE SKIP LOCKED
        ), removed AS (
            DELETE FROM event USING (
                SELECT event.session, event.position FROM event JOIN next ON next.session = event.session LIMIT $1
            ) AS some
            WHERE event.session = some.session AND event.position = some.position
            RETURNING 1
        ), emptied AS (
            UPDATE doomed SET is_empty = true FROM next
            WHERE doomed.session = next.session AND (SELECT count(*) FROM removed) < $1
        )
        SELECT EXISTS (SELECT 1 FROM next)";
    let rows = db.query(REMOVE, &[(&EVENTS_AT_ONCE, Type::INT8)]).await?;
    if rows.first().is_some_and(|row| row.get(0)) {
        return Ok(true);
    }
    let forgotten = forgotten.as_micros();
    db.query("DELETE FROM doomed WHERE is_empty AND deleted_at < $1", &[(&forgotten, Type::INT8)]).await?;
    Ok(false)
}
