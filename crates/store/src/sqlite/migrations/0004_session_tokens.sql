-- The sealed tokens of sessions' resources. They go with the session, or when it is archived.
CREATE TABLE session_token (
    session INTEGER NOT NULL,
    resource TEXT NOT NULL,
    sealed TEXT NOT NULL,
    PRIMARY KEY (session, resource)
) STRICT, WITHOUT ROWID;
