-- The audit store, version 6. Base tables first, then the flat views that people read. See SPEC.md.

CREATE TABLE entries (
  seq        INTEGER PRIMARY KEY,
  time       TEXT NOT NULL,
  kind       TEXT NOT NULL,
  session    TEXT,
  subject    TEXT,
  connection TEXT,
  statement  TEXT,  -- what joins an intent, its outcome and whatever else tells of it
  body       TEXT NOT NULL,
  prev       BLOB NOT NULL,
  hash       BLOB NOT NULL
) STRICT;

CREATE INDEX entries_by_statement ON entries (statement, kind) WHERE statement IS NOT NULL;
-- Conditions are said with OR: for an IN of three, SQLite makes a table at every INSERT.
CREATE INDEX entries_by_session_life ON entries (kind, session)
WHERE kind = 'session.opened' OR kind = 'session.closed';

CREATE INDEX entries_by_key ON entries (seq)
WHERE kind = 'key.created' OR kind = 'key.rotated' OR kind = 'segment.sealed';

-- Which blocks of 4,096 entries hold something of a kind, a session, a subject or a connection: who looks for one reads
-- those blocks alone. An index with a row for every entry would cost more than the entry itself. See audit/blocks.py.
CREATE TABLE blocks (
  block INTEGER NOT NULL,  -- (seq - 1) / 4096
  name  TEXT NOT NULL CHECK (name IN ('kind', 'session', 'subject', 'connection')),
  value TEXT NOT NULL,
  PRIMARY KEY (block, name, value)
) STRICT, WITHOUT ROWID;

-- A seat belt against accidents, not a lock: whoever can write the file can drop them. The chain is the lock.
CREATE TRIGGER entries_are_never_updated BEFORE UPDATE ON entries
BEGIN SELECT raise(ABORT, 'audit entries are never changed'); END;
CREATE TRIGGER entries_are_never_deleted BEFORE DELETE ON entries
WHEN OLD.seq > (SELECT coalesce(max(last), 0) FROM segments)
BEGIN SELECT raise(ABORT, 'audit entries are never deleted'); END;

-- The segments that were sealed, as their `segment.sealed` entries say: for people, and for the two triggers that let
-- go what a segment holds. A file whose newest entry is the last of a segment is that segment.
CREATE TABLE segments (
  last  INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,
  time  TEXT NOT NULL,
  root  TEXT NOT NULL
) STRICT;

-- What was signed, and when (RFC 3339): a C2SP signed note over the first `size` entries, and the roots of the
-- tree's perfect subtrees, 32 bytes each and the largest first, from which the tree goes on growing.
CREATE TABLE checkpoints (
  size  INTEGER PRIMARY KEY,
  time  TEXT NOT NULL,
  note  TEXT NOT NULL,
  peaks BLOB NOT NULL
) STRICT;

CREATE TRIGGER checkpoints_are_never_updated BEFORE UPDATE ON checkpoints
BEGIN SELECT raise(ABORT, 'checkpoints are never changed'); END;
CREATE TRIGGER checkpoints_are_never_deleted BEFORE DELETE ON checkpoints
WHEN OLD.size >= (SELECT coalesce(max(last), 0) FROM segments)
BEGIN SELECT raise(ABORT, 'checkpoints are never deleted'); END;

CREATE TABLE approval_records (
  id      TEXT PRIMARY KEY,
  state   TEXT NOT NULL CHECK (
    state IN ('requested', 'approved', 'denied', 'expired', 'cancelled', 'consumed', 'void')
  ),
  record  TEXT NOT NULL  -- JSON; its SHA-256 is in the chain
) STRICT;

CREATE INDEX approval_records_by_state ON approval_records (state);

CREATE TABLE approval_votes (
  approval TEXT NOT NULL REFERENCES approval_records (id),
  issuer   TEXT NOT NULL,
  subject  TEXT NOT NULL,
  vote     TEXT NOT NULL,  -- JSON; its SHA-256 is in the chain
  PRIMARY KEY (approval, issuer, subject)  -- one human, one vote
) STRICT;

-- What a statement's client was sent, by the seq of its outcome, which names the digest: see audit/recording.py.
CREATE TABLE recordings (
  seq  INTEGER PRIMARY KEY,
  data BLOB NOT NULL
) STRICT;

CREATE TRIGGER recordings_are_never_updated BEFORE UPDATE ON recordings
BEGIN SELECT raise(ABORT, 'recordings are shredded, never changed'); END;

CREATE VIEW statements AS
SELECT i.seq,
       i.time,
       i.subject                                   AS who,
       i.body ->> '$.principal.kind'               AS kind,
       i.body ->> '$.principal.on_behalf_of'       AS on_behalf_of,
       (SELECT group_concat(value, ', ') FROM json_each(i.body, '$.principal.groups')) AS groups,
       i.connection,
       i.body ->> '$.door'                         AS door,
       i.body ->> '$.client.name'                  AS client,
       i.body ->> '$.verdict.effect'               AS verdict,
       (SELECT group_concat(value, ', ') FROM json_each(i.body, '$.verdict.rules')) AS rule,
       coalesce(o.body ->> '$.status', 'running')  AS status,
       o.body ->> '$.tag'                          AS tag,
       o.body ->> '$.rows'                         AS rows,
       o.body ->> '$.duration_ms'                  AS duration_ms,
       o.body ->> '$.sqlstate'                     AS sqlstate,
       (SELECT group_concat(value, ', ') FROM json_each(o.body, '$.masked')) AS masked,
       i.body ->> '$.text'                         AS sql,
       i.body ->> '$.request.reason'               AS reason,
       o.body ->> '$.message'                      AS message,
       i.body ->> '$.approval'                     AS approval,
       o.body ->> '$.recording.mode'               AS recorded,
       i.session,
       i.statement
  FROM entries i
  LEFT JOIN entries o ON o.statement = i.statement AND o.kind = 'outcome'
 WHERE i.kind = 'intent';

CREATE VIEW sessions AS
SELECT o.seq,
       o.time                                 AS opened,
       c.time                                 AS closed,
       o.session,
       o.subject                              AS who,
       o.body ->> '$.principal.kind'          AS kind,
       o.body ->> '$.principal.on_behalf_of'  AS on_behalf_of,
       (SELECT group_concat(value, ', ') FROM json_each(o.body, '$.principal.groups')) AS groups,
       o.connection,
       o.body ->> '$.door'                    AS door,
       o.body ->> '$.client.name'             AS client,
       o.body ->> '$.client.address'          AS address,
       o.body ->> '$.expires'                 AS expires,
       c.body ->> '$.reason'                  AS ended_because
  FROM entries o
  LEFT JOIN entries c ON c.session = o.session AND c.kind = 'session.closed'
 WHERE o.kind = 'session.opened';

CREATE VIEW approvals AS
SELECT r.id,
       r.state,
       r.record ->> '$.created'                AS asked,
       r.record ->> '$.expires'                AS expires,
       r.record ->> '$.principal.subject'      AS requester,
       r.record ->> '$.principal.on_behalf_of' AS on_behalf_of,
       r.record ->> '$.connection'             AS connection,
       r.record ->> '$.door'                   AS door,
       (SELECT group_concat(v.subject || ': ' || (v.vote ->> '$.choice'), ', ')
          FROM approval_votes v WHERE v.approval = r.id) AS votes,
       r.record ->> '$.statement'              AS sql,
       r.record ->> '$.digest'                 AS digest
  FROM approval_records r;
