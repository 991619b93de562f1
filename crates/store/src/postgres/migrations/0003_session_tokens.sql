-- The sealed tokens of sessions' resources. They go with the session, or when it is archived.
CREATE TABLE session_token (
    session bigint NOT NULL,
    resource text NOT NULL,
    sealed text NOT NULL,
    PRIMARY KEY (session, resource)
);
