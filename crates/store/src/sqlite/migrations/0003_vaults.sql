CREATE TABLE vault (
    id TEXT NOT NULL PRIMARY KEY,
    workspace TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX vault_by_age ON vault (workspace, created_at, id);

CREATE TABLE credential (
    id TEXT NOT NULL PRIMARY KEY,
    workspace TEXT NOT NULL,
    vault TEXT NOT NULL,
    -- Which server or variable it is for. Never a secret.
    key TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- These two are newer than the same in the body.
    updated_at INTEGER NOT NULL,
    archived_at INTEGER,
    body TEXT NOT NULL,
    -- Sealed secrets by field, as JSON; none once the credential is archived.
    sealed TEXT,
    -- Who renews its token, and until when nobody else does.
    refresher TEXT,
    refresher_until INTEGER
) STRICT;
CREATE INDEX credential_by_age ON credential (vault, created_at, id);
CREATE UNIQUE INDEX credential_by_key ON credential (vault, key) WHERE archived_at IS NULL;

-- The one master key that wraps what is new, by its name.
CREATE TABLE vault_master (
    only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    name TEXT NOT NULL
) STRICT;

-- The key of each workspace, wrapped by the master key of that name.
CREATE TABLE vault_key (
    workspace TEXT NOT NULL PRIMARY KEY,
    master TEXT NOT NULL,
    wrapped TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
