-- How many holders of the lease in a row died without recording an answer or a result.
ALTER TABLE head ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
-- Since when the session wants a brain and nobody holds it.
ALTER TABLE head ADD COLUMN wanted_since INTEGER;
-- What its holder said that it waits for, as JSON.
ALTER TABLE head ADD COLUMN waiting TEXT;
