-- Times are microseconds since the epoch. Ids are the text of the public API; what joins often has a number of its
-- own besides. Bodies are JSON text, exactly as it is shown. What is here is stored: migrations only ever add.

CREATE TABLE workspace (
    id TEXT NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_key (
    id TEXT NOT NULL PRIMARY KEY,
    workspace TEXT NOT NULL,
    name TEXT NOT NULL,
    -- The SHA-256 of the key. The key itself is nowhere.
    hash BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

CREATE TABLE agent (
    id TEXT NOT NULL PRIMARY KEY,
    workspace TEXT NOT NULL,
    -- The latest one.
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;
CREATE INDEX agent_by_age ON agent (workspace, created_at, id);

CREATE TABLE agent_version (
    agent TEXT NOT NULL,
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (agent, version)
) STRICT;

CREATE TABLE environment (
    id TEXT NOT NULL PRIMARY KEY,
    workspace TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX environment_by_age ON environment (workspace, created_at, id);
CREATE UNIQUE INDEX environment_by_name ON environment (workspace, name) WHERE archived_at IS NULL;

-- What a session is. Changes seldom; what changes with every append is in head.
CREATE TABLE session (
    -- Never used again, so that what a deleted session leaves behind for a moment belongs to nobody else.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    agent_version INTEGER NOT NULL,
    environment_id TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER,
    record TEXT NOT NULL
) STRICT;
CREATE INDEX session_by_age ON session (workspace, created_at, id);
CREATE INDEX session_by_agent ON session (workspace, agent_id, created_at, id);
CREATE INDEX session_by_environment ON session (environment_id);

-- What a session's log and inbox come to. Written once per session and flush.
CREATE TABLE head (
    session INTEGER PRIMARY KEY,
    -- The place of the log's last event.
    position INTEGER NOT NULL,
    -- The number of the last event that ever entered the inbox.
    inbox_last INTEGER NOT NULL,
    -- As shown: 0 idle, 1 running, 2 rescheduling, 3 terminated.
    status INTEGER NOT NULL,
    wants_brain INTEGER NOT NULL,
    -- Grows with each claim.
    epoch INTEGER NOT NULL,
    lease_until INTEGER,
    holder TEXT,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX head_wanting ON head (session) WHERE wants_brain = 1;
CREATE INDEX head_leased ON head (session) WHERE lease_until IS NOT NULL;

-- Kinds of event by number. Private ones have negative numbers.
CREATE TABLE kind (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE event (
    number INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    -- 0 is the primary thread.
    thread INTEGER NOT NULL DEFAULT 0,
    -- Which version of our own envelope and private kinds this row was written with.
    form INTEGER NOT NULL DEFAULT 1,
    at INTEGER NOT NULL,
    -- The place of the last event of the same append: tells where appends begin and end.
    append_end INTEGER NOT NULL,
    -- The number that it had in the inbox, if it came from there.
    taken INTEGER,
    body TEXT NOT NULL
) STRICT;
-- Finds a slice, and filters it by kind without touching a body.
CREATE UNIQUE INDEX event_by_position ON event (session, position, kind);
CREATE INDEX event_by_taken ON event (session, taken) WHERE taken IS NOT NULL;

CREATE TABLE inbox (
    number INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    -- From 1 in its session, in the order of arrival.
    sequence INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX inbox_by_sequence ON inbox (session, sequence);

-- Deleted sessions whose events are still being removed, some with each flush.
CREATE TABLE doomed (
    session INTEGER PRIMARY KEY
) STRICT;
