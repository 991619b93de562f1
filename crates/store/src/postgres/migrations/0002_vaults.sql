CREATE TABLE vault (
    id text PRIMARY KEY,
    workspace text NOT NULL,
    created_at bigint NOT NULL,
    archived_at bigint,
    body text NOT NULL
);
CREATE INDEX vault_by_age ON vault (workspace, created_at, id COLLATE "C");

CREATE TABLE credential (
    id text PRIMARY KEY,
    workspace text NOT NULL,
    vault text NOT NULL,
    -- Which server or variable it is for. Never a secret.
    key text NOT NULL,
    -- Grows with each change: what was decided on an older version is not written.
    version bigint NOT NULL DEFAULT 1,
    created_at bigint NOT NULL,
    -- These two are newer than the same in the body.
    updated_at bigint NOT NULL,
    archived_at bigint,
    body text NOT NULL,
    -- Sealed secrets by field, as JSON; none once the credential is archived.
    sealed text,
    -- Who renews its token, and until when nobody else does.
    refresher text,
    refresher_until bigint
);
CREATE INDEX credential_by_age ON credential (vault, created_at, id COLLATE "C");
CREATE UNIQUE INDEX credential_by_key ON credential (vault, key) WHERE archived_at IS NULL;

-- The one master key that wraps what is new, by its name.
CREATE TABLE vault_master (
    only_one boolean PRIMARY KEY CHECK (only_one),
    name text NOT NULL
);

-- The key of each workspace, wrapped by the master key of that name.
CREATE TABLE vault_key (
    workspace text PRIMARY KEY,
    master text NOT NULL,
    wrapped text NOT NULL,
    created_at bigint NOT NULL
);
