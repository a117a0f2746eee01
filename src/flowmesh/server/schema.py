"""The read models: tables made from the journal's records, in the same transaction.

Only `project.py` writes `runs` to `uses` and `progress`; they can be rebuilt by replaying the
journal. So can `superseded`, but for what was taken away since.
`uploads` and `model_tags` are registries of their own, written on request. `decisions` and
`forecasts` say what was thought at the time, which cannot be had again.
"""

from flowmesh.stores.sqlite import JOURNAL_TABLES

VERSION_1 = (
    *JOURNAL_TABLES,
    """CREATE TABLE runs (
        run TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL,
        message TEXT NOT NULL DEFAULT '', submitted_ms INTEGER NOT NULL, settled_ms INTEGER,
        request TEXT NOT NULL, batches INTEGER NOT NULL DEFAULT 0,
        usd REAL NOT NULL DEFAULT 0, saved_usd REAL NOT NULL DEFAULT 0)""",
    "CREATE INDEX runs_by_time ON runs (submitted_ms, run)",
    """CREATE TABLE steps (
        step TEXT PRIMARY KEY, run TEXT NOT NULL, position INTEGER NOT NULL,
        name TEXT NOT NULL, op TEXT NOT NULL, status TEXT NOT NULL,
        message TEXT NOT NULL DEFAULT '',
        items INTEGER NOT NULL DEFAULT 0, pending INTEGER NOT NULL DEFAULT 0,
        executed INTEGER NOT NULL DEFAULT 0, reused INTEGER NOT NULL DEFAULT 0,
        joined INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        rows_refused INTEGER NOT NULL DEFAULT 0, items_blob TEXT NOT NULL DEFAULT '',
        outputs TEXT NOT NULL DEFAULT '{}',
        origins TEXT NOT NULL DEFAULT '{}', settled_ms INTEGER)""",
    "CREATE INDEX steps_by_run ON steps (run, position)",
    # The action cache: what each fingerprint gave, and what that took.
    """CREATE TABLE results (
        task TEXT PRIMARY KEY, result TEXT NOT NULL, pack TEXT NOT NULL, line INTEGER NOT NULL,
        batch_key TEXT NOT NULL, worker TEXT NOT NULL, lease INTEGER NOT NULL,
        run TEXT NOT NULL, made_ms INTEGER NOT NULL, seconds REAL NOT NULL, usd REAL NOT NULL)
        WITHOUT ROWID""",
    """CREATE TABLE failures (
        step TEXT NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
        detail TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (step, task)) WITHOUT ROWID""",
    """CREATE TABLE attempts (
        lease INTEGER NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL,
        at_ms INTEGER NOT NULL)""",
    "CREATE INDEX attempts_by_task ON attempts (task)",
    """CREATE TABLE leases (
        lease INTEGER PRIMARY KEY, worker TEXT NOT NULL, batch_key TEXT NOT NULL,
        tasks INTEGER NOT NULL, score TEXT NOT NULL, granted_ms INTEGER NOT NULL,
        ended_ms INTEGER, reason TEXT NOT NULL DEFAULT '')""",
    """CREATE TABLE lease_runs (
        lease INTEGER NOT NULL, run TEXT NOT NULL, PRIMARY KEY (lease, run)) WITHOUT ROWID""",
    "CREATE INDEX lease_runs_by_run ON lease_runs (run)",
    # Lineage: what each step made, and what it was made from.
    """CREATE TABLE artifacts (
        digest TEXT NOT NULL, step TEXT NOT NULL, run TEXT NOT NULL, port TEXT NOT NULL,
        kind TEXT NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (step, port)) WITHOUT ROWID""",
    "CREATE INDEX artifacts_by_digest ON artifacts (digest)",
    """CREATE TABLE uses (
        digest TEXT NOT NULL, step TEXT NOT NULL, port TEXT NOT NULL, kind TEXT NOT NULL,
        rows INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (step, port)) WITHOUT ROWID""",
    "CREATE INDEX uses_by_digest ON uses (digest)",
    """CREATE TABLE uploads (
        tenant TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (tenant, hash)) WITHOUT ROWID""",
    """CREATE TABLE models (
        name TEXT PRIMARY KEY, artifact TEXT NOT NULL, source TEXT NOT NULL,
        added_ms INTEGER NOT NULL) WITHOUT ROWID""",
)

#: Names have tags, owners and a history.
VERSION_2 = (
    # Only ever appended to: what a tag stands for is its newest entry, nothing if `digest` is
    # empty. `owner` is a tenant, or empty for a name that all share.
    """CREATE TABLE model_tags (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, name TEXT NOT NULL,
        tag TEXT NOT NULL, digest TEXT NOT NULL, kind TEXT NOT NULL, size_bytes INTEGER NOT NULL,
        source TEXT NOT NULL, run TEXT NOT NULL, tenant TEXT NOT NULL, at_ms INTEGER NOT NULL)""",
    "CREATE INDEX model_tags_by_name ON model_tags (owner, name, tag, seq)",
    """CREATE VIEW standing_tags AS SELECT * FROM model_tags WHERE digest != '' AND seq IN
        (SELECT max(seq) FROM model_tags GROUP BY owner, name, tag)""",
    # Names were everybody's; sizes were not kept.
    """INSERT INTO model_tags
        (owner, name, tag, digest, kind, size_bytes, source, run, tenant, at_ms)
        SELECT '', name, 'latest', json_extract(artifact, '$.digest'), 'model', 0, source, '', '',
        added_ms FROM models ORDER BY added_ms, name""",
    "DROP TABLE models",
)

#: Long tasks have progress and checkpoints.
VERSION_3 = (
    # `checkpoint` is a tree, or empty; `saved_step` is the step that it goes on from.
    """CREATE TABLE progress (
        task TEXT PRIMARY KEY, step INTEGER NOT NULL, steps INTEGER NOT NULL DEFAULT 0,
        record TEXT NOT NULL DEFAULT '{}', checkpoint TEXT NOT NULL DEFAULT '',
        saved_step INTEGER NOT NULL DEFAULT 0, at_ms INTEGER NOT NULL) WITHOUT ROWID""",
    # Checkpoints that nobody will go on from, until their blobs are gone.
    "CREATE TABLE superseded (tree TEXT PRIMARY KEY) WITHOUT ROWID",
)

#: Money and quotas.
VERSION_4 = (
    "ALTER TABLE runs ADD COLUMN deadline_ms INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN budget_usd REAL NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN objective TEXT NOT NULL DEFAULT ''",
    # Null where it was not kept: the store knows it, see `Access.learn_sizes`.
    "ALTER TABLE uploads ADD COLUMN size_bytes INTEGER",
    # What a step's tasks took under a lease: the step's share, where others wanted them too.
    """CREATE TABLE lease_steps (
        step TEXT NOT NULL, lease INTEGER NOT NULL, tasks INTEGER NOT NULL, seconds REAL NOT NULL,
        usd REAL NOT NULL, PRIMARY KEY (step, lease)) WITHOUT ROWID""",
    # Of tasks that several runs were waiting for when they ended.
    """CREATE TABLE task_runs (
        task TEXT NOT NULL, run TEXT NOT NULL, PRIMARY KEY (task, run)) WITHOUT ROWID""",
    "CREATE INDEX lease_steps_by_lease ON lease_steps (lease)",
    # `explained` is `reasons.Kept`: a sample of the decisions, the newest of them.
    "CREATE TABLE decisions (lease INTEGER PRIMARY KEY, explained TEXT NOT NULL)",
    # What a batch should take (`records.Expected`) and took (`events.BatchTiming`; empty if it did
    # not tell), on what kind of device.
    "ALTER TABLE leases ADD COLUMN kind TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE leases ADD COLUMN expected TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE leases ADD COLUMN timing TEXT NOT NULL DEFAULT ''",
    # `forecast` is `planning.PlanView`, made when the run was submitted.
    "CREATE TABLE forecasts (run TEXT PRIMARY KEY, forecast TEXT NOT NULL) WITHOUT ROWID",
    # The state has another shape: the law makes it anew from the journal, which is whole.
    "DELETE FROM checkpoints",
)

MIGRATIONS = (VERSION_1, VERSION_2, VERSION_3, VERSION_4)
