//! Leases by the database's clock: claimed fairly between workspaces, renewed many at a time.

use protocol::id::{SessionId, WorkspaceId};
use protocol::time::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::Type;

use crate::error::Error;
use crate::lease::{LEASE, Lease, Token};
use crate::limits::Limits;
use crate::postgres::connect::Db;
use crate::postgres::fault::Fault;
use crate::postgres::heads::signed;
use crate::postgres::write::now_sql;
use crate::rules::leases::micros;

/// Renewals in one statement.
const RENEWALS_MAX: usize = 1_024;
/// How long a claim may take, in milliseconds: less than its answer is waited for.
const CLAIM_MAX_MILLIS: u32 = 4_000;
/// Any number will do, as long as it is always the same: "clai" in ASCII.
const LOCK: i64 = 0x636c_6169;

/// Leases up to `max` sessions that want a brain and that nobody holds: lapsed ones first, then by how many of their
/// workspace run already. Among workspaces with as few, chance decides: by age, one with a long queue would come before
/// one that is new until its queue is through. Within a workspace the oldest comes first.
pub(crate) async fn claim(
    db: &Db,
    holder: &str,
    max: usize,
    limits: &Limits,
    now: Option<Timestamp>,
) -> Result<Vec<Lease>, Fault> {
    let (now, lease, holder) = (now_sql(now), micros(LEASE), quoted(holder));
    let per_workspace = limits.running_per_workspace_max.map_or(i64::MAX, i64::from);
    let places = match limits.running_max {
        Some(all) => {
            format!("greatest(0, least({max}, {all} - (SELECT coalesce(sum(running), 0) FROM running)))")
        }
        None => max.to_string(),
    };
    // What is counted must not change until the claim is made, where a limit hangs on it. Sent as one message, so that the
    // lock goes with the statement, whatever becomes of this process.
    let is_limited = limits.running_max.is_some() || limits.running_per_workspace_max.is_some();
    let lock = if is_limited { format!("SELECT pg_advisory_xact_lock({LOCK});") } else { String::new() };
    // What nobody hears of any more must not lease sessions to nobody.
    let sql = format!(
        "SELECT set_config('statement_timeout', '{CLAIM_MAX_MILLIS}', true);
        {lock}
        WITH RECURSIVE lane AS (
            (SELECT workspace FROM head WHERE wanted_order IS NOT NULL ORDER BY workspace LIMIT 1)
            UNION ALL
            SELECT (SELECT workspace FROM head WHERE wanted_order IS NOT NULL AND workspace > lane.workspace
                ORDER BY workspace LIMIT 1)
            FROM lane WHERE lane.workspace IS NOT NULL
        ), held AS (
            SELECT session, workspace, lease_until, wants_brain FROM head WHERE holder IS NOT NULL
        ), running AS (
            SELECT workspace, count(*) AS running FROM held WHERE lease_until > {now} GROUP BY workspace
        ), candidate AS (
            SELECT session, 0::bigint AS place FROM held
            WHERE lease_until <= {now} AND wants_brain
            UNION ALL
            SELECT h.session, coalesce(r.running, 0) + row_number() OVER (
                PARTITION BY h.workspace ORDER BY h.wanted_order)
            FROM lane CROSS JOIN LATERAL (
                SELECT session, workspace, wanted_order FROM head
                WHERE workspace = lane.workspace AND wanted_order IS NOT NULL ORDER BY wanted_order LIMIT {max}
            ) h LEFT JOIN running r ON r.workspace = h.workspace
        ), chosen AS (
            SELECT session FROM candidate WHERE place <= {per_workspace}
            ORDER BY place, random() LIMIT {places}
        ), free AS (
            SELECT head.session FROM head JOIN chosen ON chosen.session = head.session
            WHERE head.wanted_order IS NOT NULL OR (head.holder IS NOT NULL AND head.lease_until <= {now})
            FOR UPDATE OF head SKIP LOCKED
        )
        UPDATE head SET version = version + 1, epoch = epoch + 1, lease_until = {now} + {lease}, holder = {holder},
            deaths = deaths + (holder IS NOT NULL)::integer, wanted_since = NULL, wanted_order = NULL, waiting = NULL
        FROM free WHERE head.session = free.session
        RETURNING head.id, head.epoch, head.deaths"
    );
    let held_since = Instant::now();
    let answer = db.simple(&sql).await?;
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.len() == 3 => Some(row),
        _ => None,
    });
    let lease = |row: &tokio_postgres::SimpleQueryRow| -> Option<Lease> {
        let session = SessionId::from_text(row.get(0)?.to_owned());
        Some(Lease {
            token: Token { session, epoch: row.get(1)?.parse().ok()? },
            deaths: row.get(2)?.parse().ok()?,
            held_since,
        })
    };
    Ok(rows.filter_map(lease).collect())
}

/// Leases this session, whether it wants a brain or not.
pub(crate) async fn try_claim(
    db: &Db,
    id: &SessionId,
    holder: &str,
    now: Option<Timestamp>,
) -> Result<Option<Lease>, Fault> {
    let (now, lease) = (now_sql(now), micros(LEASE));
    let sql = format!(
        "UPDATE head SET version = version + 1, epoch = epoch + 1, lease_until = {now} + {lease}, holder = $2,
            deaths = deaths + (holder IS NOT NULL)::integer, wanted_since = NULL, wanted_order = NULL, waiting = NULL
        WHERE id = $1 AND (lease_until IS NULL OR lease_until <= {now})
        RETURNING epoch, deaths"
    );
    let held_since = Instant::now();
    let row = db.query_opt(&sql, &[(&id.as_str(), Type::TEXT), (&holder, Type::TEXT)]).await?;
    Ok(row.map(|row| Lease {
        token: Token { session: id.clone(), epoch: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default() },
        deaths: u32::try_from(row.get::<_, i32>(1)).unwrap_or_default(),
        held_since,
    }))
}

/// Somebody wants a lease renewed.
pub(crate) struct Renewal {
    pub(crate) token: Token,
    pub(crate) answer: oneshot::Sender<Result<bool, Error>>,
}

/// Renews, all that waits in one statement. It leaves the version alone, so it is in nobody's way.
pub(crate) async fn renew_all(
    db: Db,
    mut waiting: mpsc::Receiver<Renewal>,
    now: impl Fn() -> Option<Timestamp> + Send,
) {
    let mut renewals = Vec::new();
    while waiting.recv_many(&mut renewals, RENEWALS_MAX).await > 0 {
        let renewed = renew(&db, &renewals, now()).await;
        for Renewal { token, answer } in renewals.drain(..) {
            let outcome = match &renewed {
                Ok(renewed) => Ok(renewed.contains(token.session.as_str())),
                Err(fault) => Err(fault.clone().into()),
            };
            // Nobody waits any more.
            let _ = answer.send(outcome);
        }
    }
}

async fn renew(
    db: &Db,
    renewals: &[Renewal],
    now: Option<Timestamp>,
) -> Result<std::collections::HashSet<String>, Fault> {
    let mut tokens: Vec<&Token> = renewals.iter().map(|renewal| &renewal.token).collect();
    tokens.sort_by(|one, other| one.session.cmp(&other.session));
    let ids: Vec<&str> = tokens.iter().map(|token| token.session.as_str()).collect();
    let epochs: Vec<i64> = tokens.iter().map(|token| signed(token.epoch)).collect();
    let (now, lease) = (now_sql(now), micros(LEASE));
    let sql = format!(
        "UPDATE head SET lease_until = {now} + {lease}
        FROM unnest($1::text[], $2::bigint[]) AS t (id, epoch)
        WHERE head.id = t.id AND head.epoch = t.epoch AND head.holder IS NOT NULL
        RETURNING head.id"
    );
    let rows = db.query(&sql, &[(&ids, Type::TEXT_ARRAY), (&epochs, Type::INT8_ARRAY)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How many sessions of this workspace wait, up to `max`.
pub(crate) async fn waiting(db: &Db, workspace: &WorkspaceId, max: u32) -> Result<u32, Fault> {
    const COUNT: &str = "
        SELECT count(*) FROM (
            SELECT 1 FROM head WHERE workspace = $1 AND wanted_order IS NOT NULL LIMIT $2
        ) AS waiting";
    let max = i64::from(max);
    let rows = db.query(COUNT, &[(&workspace.as_str(), Type::TEXT), (&max, Type::INT8)]).await?;
    Ok(rows.first().map_or(0, |row| u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX)))
}

/// Says that this process claims sessions; gives how many do.
pub(crate) async fn beat(db: &Db, node: &str, now: Option<Timestamp>) -> Result<u32, Fault> {
    let now = now_sql(now);
    let alive = 2 * micros(LEASE);
    let sql = format!(
        "WITH seen AS (
            INSERT INTO brain (node, seen_at) VALUES ($1, {now})
            ON CONFLICT (node) DO UPDATE SET seen_at = excluded.seen_at
        ), gone AS (
            DELETE FROM brain WHERE seen_at < {now} - {alive} AND node <> $1
        )
        SELECT count(*) + 1 FROM brain WHERE seen_at >= {now} - {alive} AND node <> $1"
    );
    let rows = db.query(&sql, &[(&node, Type::TEXT)]).await?;
    Ok(u32::try_from(rows[0].get::<_, i64>(0)).unwrap_or(1))
}

/// Says that this process does not claim any more.
pub(crate) async fn leave(db: &Db, node: &str) -> Result<(), Fault> {
    db.query("DELETE FROM brain WHERE node = $1", &[(&node, Type::TEXT)]).await?;
    Ok(())
}

/// A text in a statement.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\0', "").replace('\'', "''"))
}
