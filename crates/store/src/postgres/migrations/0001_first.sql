-- Times are microseconds since the epoch. Ids are the text of the public API; what joins often has a number of its
-- own besides. Bodies are JSON text, exactly as it is shown. What is here is stored: migrations only ever add.

CREATE TABLE workspace (
    id text PRIMARY KEY,
    created_at bigint NOT NULL
);

CREATE TABLE api_key (
    id text PRIMARY KEY,
    workspace text NOT NULL,
    name text NOT NULL,
    -- The SHA-256 of the key. The key itself is nowhere.
    hash bytea NOT NULL UNIQUE,
    created_at bigint NOT NULL,
    revoked_at bigint
);

CREATE TABLE agent (
    id text PRIMARY KEY,
    workspace text NOT NULL,
    -- The latest one.
    version bigint NOT NULL,
    created_at bigint NOT NULL,
    archived_at bigint
);
CREATE INDEX agent_by_age ON agent (workspace, created_at, id COLLATE "C");

CREATE TABLE agent_version (
    agent text NOT NULL,
    version bigint NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (agent, version)
);

CREATE TABLE environment (
    id text PRIMARY KEY,
    workspace text NOT NULL,
    name text NOT NULL,
    created_at bigint NOT NULL,
    archived_at bigint,
    body text NOT NULL
);
CREATE INDEX environment_by_age ON environment (workspace, created_at, id COLLATE "C");
CREATE UNIQUE INDEX environment_by_name ON environment (workspace, name) WHERE archived_at IS NULL;

-- Numbers are taken before a session is written, and never used again.
CREATE SEQUENCE session_number;

-- What a session is. Changes seldom; what changes with every append is in head.
CREATE TABLE session (
    number bigint PRIMARY KEY,
    id text NOT NULL UNIQUE,
    workspace text NOT NULL,
    agent_id text NOT NULL,
    agent_version bigint NOT NULL,
    environment_id text NOT NULL,
    thread_id text NOT NULL,
    created_at bigint NOT NULL,
    archived_at bigint,
    record text NOT NULL
);
CREATE INDEX session_by_age ON session (workspace, created_at, id COLLATE "C");
CREATE INDEX session_by_agent ON session (workspace, agent_id, created_at, id COLLATE "C");
CREATE INDEX session_by_environment ON session (environment_id);

-- In which order sessions began to want a brain.
CREATE SEQUENCE wanted_order;

-- What a session's log and inbox come to. Written once per session and flush. No index hangs on what an append in the
-- middle of a turn changes, and there is room on the page: such an update touches the row alone.
CREATE TABLE head (
    session bigint PRIMARY KEY,
    id text NOT NULL UNIQUE,
    workspace text NOT NULL,
    -- Grows with each write but a renewal: what was decided on an older version is not written.
    version bigint NOT NULL DEFAULT 1,
    -- Names the last write, so that whoever did not hear its outcome can find it out.
    write_id bigint NOT NULL DEFAULT 0,
    -- The place of the log's last event.
    position bigint NOT NULL,
    -- The number of the last event that ever entered the inbox.
    inbox_last bigint NOT NULL,
    -- As shown: 0 idle, 1 running, 2 rescheduling, 3 terminated.
    status smallint NOT NULL,
    wants_brain boolean NOT NULL,
    -- Grows with each claim.
    epoch bigint NOT NULL DEFAULT 0,
    -- Present exactly while there is a holder.
    lease_until bigint,
    holder text,
    -- How many holders in a row died without recording an answer or a result.
    deaths integer NOT NULL DEFAULT 0,
    -- Since when, and in which order, it wants a brain and nobody holds it.
    wanted_since bigint,
    wanted_order bigint,
    -- What its holder said that it waits for, as JSON.
    waiting text,
    state text NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX head_wanted ON head (workspace, wanted_order) WHERE wanted_order IS NOT NULL;
CREATE INDEX head_held ON head (workspace) WHERE holder IS NOT NULL;

CREATE TABLE event (
    session bigint NOT NULL,
    position bigint NOT NULL,
    kind text NOT NULL,
    is_private boolean NOT NULL,
    -- 0 is the primary thread.
    thread bigint NOT NULL DEFAULT 0,
    -- Which version of our own envelope and private kinds this row was written with.
    form smallint NOT NULL DEFAULT 1,
    at bigint NOT NULL,
    -- The place of the last event of the same append: tells where appends begin and end.
    append_end bigint NOT NULL,
    -- The number that it had in the inbox, if it came from there.
    taken bigint,
    body text NOT NULL,
    PRIMARY KEY (session, position)
);
CREATE INDEX event_by_taken ON event (session, taken) WHERE taken IS NOT NULL;

CREATE TABLE inbox (
    session bigint NOT NULL,
    -- From 1 in its session, in the order of arrival.
    sequence bigint NOT NULL,
    kind text NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (session, sequence)
);

-- Deleted sessions: those whose events are still being removed, and for a while the others, so that whoever follows
-- them elsewhere is told.
CREATE TABLE doomed (
    session bigint PRIMARY KEY,
    id text NOT NULL UNIQUE,
    -- The event that says so.
    said text NOT NULL,
    deleted_at bigint NOT NULL,
    is_empty boolean NOT NULL DEFAULT false
);

-- The processes that claim sessions, and when each was last seen.
CREATE TABLE brain (
    node text PRIMARY KEY,
    seen_at bigint NOT NULL
);
