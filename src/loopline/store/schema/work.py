"""What happens and what is done: the event log, tasks, people, projects, pipelines, jobs, runs."""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, String, Table, UniqueConstraint

from loopline.store.schema.columns import SERIAL, id_, json_, metadata, status_, text_, time_

# -- the log of everything that happened ------------------------------------------------------------------------------

events = Table(
    "events",
    metadata,
    Column("number", SERIAL, primary_key=True, autoincrement=True),
    time_("at", null=False),
    text_("actor", null=False),
    text_("noun", null=False),
    text_("record", null=False),
    text_("kind", null=False),  # created, moved, changed, deleted, or a use case's own word
    text_("before"),
    text_("after"),
    text_("reason"),
    json_("data"),
    Index(None, "noun", "record"),
)
tags = Table(
    "tags",  # words that people put on a record
    metadata,
    Column("record", String(40), primary_key=True),
    Column("key", String(128), primary_key=True),
    text_("noun", null=False),
    text_("value", null=False),
    time_("changed_at", null=False),
    Index(None, "noun", "key"),
)
audit = Table(
    "audit",
    metadata,
    Column("number", SERIAL, primary_key=True, autoincrement=False),  # the event's
    text_("previous", null=False),
    text_("digest", null=False),
)
consumers = Table(
    "consumers", metadata, Column("name", String(63), primary_key=True), Column("position", BigInteger, nullable=False)
)
spools = Table(
    "spools", metadata, Column("name", String(255), primary_key=True), Column("position", BigInteger, nullable=False)
)

# -- internal work ----------------------------------------------------------------------------------------------------

queue = Table(
    "queue",
    metadata,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("kind", String(63), nullable=False),
    Column("key", String(255), nullable=False),
    time_("run_at", null=False),
    text_("owner"),
    time_("lease_until"),
    Column("token", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("again", Boolean, nullable=False),  # asked for once more while it was being worked on
    text_("error"),
    UniqueConstraint("kind", "key"),
    Index(None, "run_at"),
    sqlite_autoincrement=True,  # an id that came back would let an old token hold for a new task
)

# -- people and programs ----------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    time_("created_at", null=False),
)
keys = Table(
    "keys",
    metadata,
    id_(),
    text_("user", null=False),  # the user's name
    text_("name"),
    Column("role", String(16), nullable=False),
    json_("endpoints"),  # names, or ["*"]; for invoker keys
    Column("rate", Double, nullable=True),  # predictions a second; null is unlimited
    Column("burst", Double, nullable=True),
    Column("quota", BigInteger, nullable=True),  # predictions in every quota_seconds
    Column("quota_seconds", Integer, nullable=True),
    Column("sha256", String(64), nullable=False),
    text_("created_by", null=False),
    time_("created_at", null=False),
    time_("expires_at"),
    time_("revoked_at"),
)
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(127), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    time_("changed_at", null=False),
)

# -- projects and what arrives ----------------------------------------------------------------------------------------

projects = Table(
    "projects",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    json_("loop"),  # loop.toml as applied
    text_("tree"),  # digest of the tree it was applied from
    text_("environment"),
    time_("created_at", null=False),
    time_("changed_at", null=False),
)
pushes = Table(
    "pushes",
    metadata,
    id_(),
    status_(),
    text_("project", null=False),
    text_("branch"),
    text_("commit"),
    Column("dirty", Boolean, nullable=False),
    text_("tree", null=False),
    text_("message"),
    text_("by", null=False),
    text_("source", null=False),  # push, run, webhook
    json_("options"),  # parameters, what started it
    json_("trigger"),
    Column("delivery", String(255), nullable=True, unique=True),
    text_("environment"),
    json_("jobs"),
    text_("execution"),
    text_("reason"),
    time_("created_at", null=False),
    time_("ended_at"),
)
environments = Table(
    "environments",
    metadata,
    id_(),
    status_(),
    Column("key", String(64), nullable=False, unique=True),  # digest of the lock, the Python and the platform
    text_("lock"),
    text_("requirements", null=False),
    text_("python"),
    text_("path"),
    json_("preload"),
    text_("reason"),
    Column("packages", Integer, nullable=True),
    Column("size_mb", Double, nullable=True),
    Column("seconds", Double, nullable=True),
    time_("created_at", null=False),
)
environment_versions = Table(
    "environment_versions",
    metadata,
    id_(),
    text_("project", null=False),
    Column("version", Integer, nullable=False),
    text_("environment", null=False),
    time_("created_at", null=False),
    UniqueConstraint("project", "version"),
)
assets = Table(
    "assets",
    metadata,
    id_(),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    text_("kind", null=False),  # file or folder
    text_("format"),
    Column("size_bytes", BigInteger, nullable=False),
    json_("source"),
    text_("by", null=False),
    time_("created_at", null=False),
    UniqueConstraint("project", "name", "version"),
)

# -- pipelines and jobs -----------------------------------------------------------------------------------------------

pipelines = Table(
    "pipelines",
    metadata,
    id_(),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    json_("spec"),
    text_("definition"),  # what it was compiled from, as a client wrote it
    time_("created_at", null=False),
    UniqueConstraint("project", "name", "version"),
)
stored_pipelines = Table(  # of no project: a client keeps its definition here; versions are in pipelines, project ""
    "stored_pipelines",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    Column("version", Integer, nullable=False),  # the newest
    text_("title"),
    text_("description"),
    text_("role"),
    Column("max_parallel", Integer, nullable=True),
    Column("delivery", String(255), nullable=True),  # of the request that created it
    text_("created_by", null=False),
    text_("changed_by", null=False),
    time_("created_at", null=False),
    time_("changed_at", null=False),
)
executions = Table(
    "executions",
    metadata,
    id_(),
    status_(),
    text_("project", null=False),
    text_("pipeline", null=False),
    Column("pipeline_version", Integer, nullable=False),
    text_("push"),
    text_("environment"),
    json_("parameters"),
    json_("targets"),  # which model and endpoint this branch moves
    json_("assets"),  # data assets as they were when it started
    json_("trigger"),
    Column("delivery", String(255), nullable=True, unique=True),
    Column("cache", Boolean, nullable=False),
    Column("max_parallel", Integer, nullable=False),
    json_("selection"),  # the steps that run; of the others results are taken from an earlier execution
    text_("by", null=False),
    text_("reason"),
    time_("created_at", null=False),
    time_("started_at"),
    time_("ended_at"),
    Index(None, "project", "created_at"),
    Index(None, "pipeline", "created_at"),
)
steps = Table(
    "steps",
    metadata,
    id_(),
    status_(),
    Column("execution", String(40), nullable=False),
    Column("name", String(127), nullable=False),
    Column("position", Integer, nullable=False),
    text_("kind", null=False),
    text_("cache_key"),
    text_("cached_from"),  # the execution whose result this is
    json_("outputs"),
    text_("job"),
    text_("run"),
    text_("reason"),
    time_("started_at"),
    time_("ended_at"),
    UniqueConstraint("execution", "name"),
)
cache = Table(
    "cache",
    metadata,
    Column("key", String(64), primary_key=True),
    text_("execution", null=False),
    text_("step", null=False),
    json_("outputs"),
    time_("created_at", null=False),
)
jobs = Table(
    "jobs",
    metadata,
    id_(),
    status_(),
    Column("owner", String(16), nullable=False),  # the noun that asked for it: step, push, evaluation
    Column("owner_id", String(40), nullable=False),
    text_("name", null=False),
    text_("kind", null=False),
    json_("spec"),
    Column("tries", Integer, nullable=False),
    Column("max_tries", Integer, nullable=False),
    Column("backoff_seconds", Double, nullable=False),
    json_("retry"),  # when a try that failed is followed by another, beyond their number
    time_("not_before"),
    json_("result"),
    text_("reason"),
    time_("created_at", null=False),
    time_("started_at"),
    time_("ended_at"),
    Index(None, "owner", "owner_id"),
    Index(None, "status"),
)
attempts = Table(
    "attempts",
    metadata,
    id_(),
    status_(),
    Column("job", String(40), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    text_("host", null=False),
    json_("exit"),
    text_("reason"),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "status"),
)

# -- tracking ---------------------------------------------------------------------------------------------------------

runs = Table(
    "runs",
    metadata,
    id_(),
    status_(),
    Column("project", String(63), nullable=False),
    Column("experiment", String(127), nullable=False),
    text_("name", null=False),
    text_("execution"),
    text_("step"),
    text_("attempt"),
    json_("parameters"),
    json_("metrics"),  # the last value of each
    json_("tags"),
    json_("inputs"),
    text_("commit"),
    Column("dirty", Boolean, nullable=False),
    text_("tree"),
    text_("environment"),
    text_("host"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "project", "created_at"),
    Index(None, "experiment", "created_at"),
)
run_metrics = Table(
    "run_metrics",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # several values of one step keep their order
    Column("value", Double, nullable=True),  # null is NaN
    time_("at", null=False),
    sqlite_with_rowid=False,  # one B-tree in place of two
)
run_values = Table(
    "run_values",  # last value of each metric, for search: one narrow indexed row each
    metadata,
    Column("run", String(40), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("value", Double, nullable=True),  # null is NaN
    Column("step", BigInteger, nullable=False),
    time_("at", null=False),
    Column("count", BigInteger, nullable=False),  # points so far; numbers the next one
    Index(None, "key", "value"),
)
artifacts = Table(
    "artifacts",
    metadata,
    Column("run", String(40), primary_key=True),
    Column("path", String(500), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    text_("media_type"),
)
