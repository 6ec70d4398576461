"""The tables. ``migrations/`` builds the same schema step by step; a test holds the two together.

Every record that has a life of its own has ``id``; those with a status have ``status`` and stand in
``domain.states.MOVES`` under the noun that ``NOUNS`` gives. Times are seconds since the epoch, UTC.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts rows by INTEGER PRIMARY KEY only.
_Serial = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[str]:
    return Column("id", String(40), primary_key=True)


def _status() -> Column[str]:
    return Column("status", String(32), nullable=False)


def _text(name: str, *, null: bool = True) -> Column[str]:
    return Column(name, Text, nullable=null)


def _time(name: str, *, null: bool = True) -> Column[float]:
    return Column(name, Double, nullable=null)


def _json(name: str) -> Column[object]:
    return Column(name, JSON, nullable=True)


# -- the log of everything that happened ------------------------------------------------------------------------------

events = Table(
    "events",
    metadata,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    _time("at", null=False),
    _text("actor", null=False),
    _text("noun", null=False),
    _text("record", null=False),
    _text("kind", null=False),  # created, moved, changed, deleted, or a use case's own word
    _text("before"),
    _text("after"),
    _text("reason"),
    _json("data"),
    Index(None, "noun", "record"),
)
audit = Table(
    "audit",
    metadata,
    Column("number", _Serial, primary_key=True, autoincrement=False),  # the event's
    _text("previous", null=False),
    _text("digest", null=False),
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
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("kind", String(63), nullable=False),
    Column("key", String(255), nullable=False),
    _time("run_at", null=False),
    _text("owner"),
    _time("lease_until"),
    Column("token", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("again", Boolean, nullable=False),  # asked for once more while it was being worked on
    _text("error"),
    UniqueConstraint("kind", "key"),
    Index(None, "run_at"),
    sqlite_autoincrement=True,  # an id that came back would let an old token hold for a new task
)

# -- people and programs ----------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    _time("created_at", null=False),
)
keys = Table(
    "keys",
    metadata,
    _id(),
    _text("user", null=False),  # the user's name
    _text("name"),
    Column("role", String(16), nullable=False),
    _json("endpoints"),  # names, or ["*"]; for invoker keys
    Column("rate", Double, nullable=True),  # predictions a second; null is unlimited
    Column("burst", Double, nullable=True),
    Column("quota", BigInteger, nullable=True),  # predictions in every quota_seconds
    Column("quota_seconds", Integer, nullable=True),
    Column("sha256", String(64), nullable=False),
    _text("created_by", null=False),
    _time("created_at", null=False),
    _time("expires_at"),
    _time("revoked_at"),
)
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(127), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    _time("changed_at", null=False),
)

# -- projects and what arrives ----------------------------------------------------------------------------------------

projects = Table(
    "projects",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    _json("loop"),  # loop.toml as applied
    _text("tree"),  # digest of the tree it was applied from
    _text("environment"),
    _time("created_at", null=False),
    _time("changed_at", null=False),
)
pushes = Table(
    "pushes",
    metadata,
    _id(),
    _status(),
    _text("project", null=False),
    _text("branch"),
    _text("commit"),
    Column("dirty", Boolean, nullable=False),
    _text("tree", null=False),
    _text("message"),
    _text("by", null=False),
    _text("source", null=False),  # push, run, webhook
    _json("options"),  # parameters, what started it
    _json("trigger"),
    Column("delivery", String(255), nullable=True, unique=True),
    _text("environment"),
    _json("jobs"),
    _text("execution"),
    _text("reason"),
    _time("created_at", null=False),
    _time("ended_at"),
)
environments = Table(
    "environments",
    metadata,
    _id(),
    _status(),
    Column("key", String(64), nullable=False, unique=True),  # digest of the lock, the Python and the platform
    _text("lock"),
    _text("requirements", null=False),
    _text("python"),
    _text("path"),
    _json("preload"),
    _text("reason"),
    Column("packages", Integer, nullable=True),
    Column("size_mb", Double, nullable=True),
    Column("seconds", Double, nullable=True),
    _time("created_at", null=False),
)
environment_versions = Table(
    "environment_versions",
    metadata,
    _id(),
    _text("project", null=False),
    Column("version", Integer, nullable=False),
    _text("environment", null=False),
    _time("created_at", null=False),
    UniqueConstraint("project", "version"),
)
assets = Table(
    "assets",
    metadata,
    _id(),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    _text("kind", null=False),  # file or folder
    _text("format"),
    Column("size_bytes", BigInteger, nullable=False),
    _json("source"),
    _text("by", null=False),
    _time("created_at", null=False),
    UniqueConstraint("project", "name", "version"),
)

# -- pipelines and jobs -----------------------------------------------------------------------------------------------

pipelines = Table(
    "pipelines",
    metadata,
    _id(),
    Column("project", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    _json("spec"),
    _time("created_at", null=False),
    UniqueConstraint("project", "name", "version"),
)
executions = Table(
    "executions",
    metadata,
    _id(),
    _status(),
    _text("project", null=False),
    _text("pipeline", null=False),
    Column("pipeline_version", Integer, nullable=False),
    _text("push"),
    _text("environment"),
    _json("parameters"),
    _json("targets"),  # which model and endpoint this branch moves
    _json("assets"),  # data assets as they were when it started
    _json("trigger"),
    Column("delivery", String(255), nullable=True, unique=True),
    Column("cache", Boolean, nullable=False),
    Column("max_parallel", Integer, nullable=False),
    _text("by", null=False),
    _text("reason"),
    _time("created_at", null=False),
    _time("started_at"),
    _time("ended_at"),
    Index(None, "project", "created_at"),
)
steps = Table(
    "steps",
    metadata,
    _id(),
    _status(),
    Column("execution", String(40), nullable=False),
    Column("name", String(127), nullable=False),
    Column("position", Integer, nullable=False),
    _text("kind", null=False),
    _text("cache_key"),
    _text("cached_from"),  # the execution whose result this is
    _json("outputs"),
    _text("job"),
    _text("run"),
    _text("reason"),
    _time("started_at"),
    _time("ended_at"),
    UniqueConstraint("execution", "name"),
)
cache = Table(
    "cache",
    metadata,
    Column("key", String(64), primary_key=True),
    _text("execution", null=False),
    _text("step", null=False),
    _json("outputs"),
    _time("created_at", null=False),
)
jobs = Table(
    "jobs",
    metadata,
    _id(),
    _status(),
    Column("owner", String(16), nullable=False),  # the noun that asked for it: step, push, evaluation
    Column("owner_id", String(40), nullable=False),
    _text("name", null=False),
    _text("kind", null=False),
    _json("spec"),
    Column("tries", Integer, nullable=False),
    Column("max_tries", Integer, nullable=False),
    Column("backoff_seconds", Double, nullable=False),
    _time("not_before"),
    _json("result"),
    _text("reason"),
    _time("created_at", null=False),
    _time("started_at"),
    _time("ended_at"),
    Index(None, "owner", "owner_id"),
    Index(None, "status"),
)
attempts = Table(
    "attempts",
    metadata,
    _id(),
    _status(),
    Column("job", String(40), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("token", BigInteger, nullable=False),
    _text("host", null=False),
    _json("exit"),
    _text("reason"),
    _time("created_at", null=False),
    _time("ended_at"),
    Index(None, "status"),
)

# -- tracking ---------------------------------------------------------------------------------------------------------

runs = Table(
    "runs",
    metadata,
    _id(),
    _status(),
    Column("project", String(63), nullable=False),
    Column("experiment", String(127), nullable=False),
    _text("name", null=False),
    _text("execution"),
    _text("step"),
    _text("attempt"),
    _json("parameters"),
    _json("metrics"),  # the last value of each
    _json("tags"),
    _json("inputs"),
    _text("commit"),
    Column("dirty", Boolean, nullable=False),
    _text("tree"),
    _text("environment"),
    _text("host"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("ended_at"),
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
    _time("at", null=False),
    sqlite_with_rowid=False,  # one B-tree in place of two
)
run_values = Table(
    "run_values",  # last value of each metric, for search: one narrow indexed row each
    metadata,
    Column("run", String(40), primary_key=True),
    Column("key", String(250), primary_key=True),
    Column("value", Double, nullable=True),  # null is NaN
    Column("step", BigInteger, nullable=False),
    _time("at", null=False),
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
    _text("media_type"),
)

# -- registry ---------------------------------------------------------------------------------------------------------

models = Table(
    "models",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    _text("project"),
    Column("gate_mode", String(16), nullable=False),  # enforce, advisory, off
    _json("gate"),
    _json("approval"),
    _text("description"),
    Column("last_version", Integer, nullable=False),
    _text("created_by", null=False),
    _time("created_at", null=False),
)
versions = Table(
    "versions",
    metadata,
    _id(),
    _status(),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    _json("artifact"),  # digest, kind, format, executable, trust, signature
    _text("handler", null=False),
    _text("tree"),
    _text("environment"),
    _json("signature"),
    _json("baseline"),
    _json("warmup"),
    _json("metrics"),
    _json("metadata"),
    _text("execution"),
    _text("step"),
    _text("run"),
    _text("evaluation"),  # the latest finished one
    _json("copied_from"),
    _text("requested_by", null=False),
    _time("created_at", null=False),
    _text("decided_by"),
    _text("policy"),
    _text("comment"),
    _time("decided_at"),
    _json("evidence"),
    UniqueConstraint("model", "number"),
    UniqueConstraint("execution", "step"),
    Index(None, "model", "status", "number"),
)
evaluations = Table(
    "evaluations",
    metadata,
    _id(),
    _status(),
    _text("version", null=False),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    _text("champion"),  # the version compared with
    _json("policy"),
    _json("asset"),
    _json("jobs"),
    _json("metrics"),
    _json("verdict"),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("ended_at"),
    Index(None, "version"),
)
scores = Table(
    "scores",  # predictions of a version on a data asset, kept so that nobody scores twice
    metadata,
    Column("key", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    _time("created_at", null=False),
)
compilations = Table(
    "compilations",
    metadata,
    _id(),
    _status(),
    _text("version", null=False),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    Column("format", String(16), nullable=False),
    Column("tolerance", Double, nullable=False),
    _text("job"),
    _json("report"),  # what differs, or why there is no conversion
    _json("artifact"),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("ended_at"),
    Index(None, "version"),
)
aliases = Table(
    "aliases",
    metadata,
    _id(),
    Column("model", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    _time("changed_at", null=False),
    UniqueConstraint("model", "name"),
)

# -- traffic ----------------------------------------------------------------------------------------------------------

endpoints = Table(
    "endpoints",
    metadata,
    _id(),
    _status(),
    Column("name", String(63), nullable=False, unique=True),
    _text("project"),
    _text("model"),
    _json("settings"),
    _text("reason"),
    _text("created_by", null=False),
    _time("created_at", null=False),
)
variants = Table(
    "variants",
    metadata,
    _id(),
    _status(),
    Column("endpoint", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    _text("version"),  # the version's id; null is ungated
    Column("model", String(63), nullable=True),
    Column("number", Integer, nullable=True),
    Column("weight", Double, nullable=False),
    Column("shadow", Double, nullable=True),  # percent of the callers' requests that it gets a copy of
    Column("instances", Integer, nullable=False),
    _text("digest", null=False),  # of the model directory
    _json("server"),
    _text("reason"),
    _time("warm_until"),
    _time("created_at", null=False),
    UniqueConstraint("endpoint", "name"),
)
rollouts = Table(
    "rollouts",
    metadata,
    _id(),
    _status(),
    Column("endpoint", String(63), nullable=False),
    _text("kind", null=False),  # release, rollback, shadow, standby or weights
    _text("strategy", null=False),
    _text("variant", null=False),
    _text("predecessor"),
    _json("plan"),
    Column("step", Integer, nullable=False),
    Column("snapshot", BigInteger, nullable=True),  # the number that every live gateway must acknowledge
    _time("step_at"),
    _json("decisions"),
    _json("trigger"),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("ended_at"),
    Index(None, "endpoint", "created_at"),
)
snapshots = Table(
    "snapshots",
    metadata,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    _time("at", null=False),
    _json("body"),
    _text("reason"),
    _text("by", null=False),
)
functions = Table(
    "functions",
    metadata,
    _id(),
    _status(),
    Column("name", String(63), nullable=False, unique=True),
    _text("project", null=False),
    _json("settings"),  # as in [[functions]]
    _text("tree", null=False),
    _text("environment"),
    _json("server"),  # the processes that answer
    _json("successor"),  # those that will, once they are ready
    _text("reason"),
    _text("by", null=False),
    _time("since_at"),  # when its processes were asked for
    _time("created_at", null=False),
    _time("changed_at", null=False),
)
gateways = Table(
    "gateways",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("number", BigInteger, nullable=False),
    _time("at", null=False),
)

endpoint_tests = Table(
    "endpoint_tests",  # what an endpoint's versions have to show before traffic moves to them
    metadata,
    _id(),
    Column("endpoint", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    _text("kind", null=False),  # golden, call or load
    _json("definition"),
    _json("cases"),  # golden: requests with the answers that are expected
    _text("source", null=False),  # api, loop.toml or captured
    _text("by", null=False),
    _time("changed_at", null=False),
    UniqueConstraint("endpoint", "name"),
)
test_runs = Table(
    "test_runs",
    metadata,
    _id(),
    _status(),
    Column("endpoint", String(63), nullable=False),
    Column("variant", String(63), nullable=False),
    Column("model", String(63), nullable=True),
    Column("number", Integer, nullable=True),
    _text("rollout"),  # null: asked for by a person
    _text("stage", null=False),
    _json("tests"),  # names, in the order in which they run
    _json("results"),
    _time("deadline_at"),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("started_at"),
    _time("ended_at"),
    Index(None, "endpoint", "created_at"),
    Index(None, "rollout"),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _status(),
    Column("project", String(63), nullable=True),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    _text("version", null=False),
    _json("input"),  # digest, name, format, and the asset that it is
    _json("settings"),
    _text("job"),
    _json("output"),  # digest, size_bytes, name, columns
    _json("errors"),  # the same of the rows set aside
    _text("asset"),  # name:version that the output became
    Column("rows", BigInteger, nullable=True),
    Column("bad", BigInteger, nullable=True),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("started_at"),
    _time("ended_at"),
    Index(None, "model", "created_at"),
    Index(None, "status"),
)
invocations = Table(
    "invocations",  # asynchronous ones; their bodies are files named by id
    metadata,
    _id(),
    _status(),
    Column("endpoint", String(63), nullable=False),
    _text("key"),
    _text("by", null=False),
    _text("content_type", null=False),
    Column("size_bytes", BigInteger, nullable=False),
    _json("answer"),  # status, content_type, size_bytes
    _text("inference_id"),  # the caller's, for labels that arrive later
    _text("request"),  # the id under which the request log has it
    Column("tries", Integer, nullable=False),
    _text("reason"),
    _time("expires_at", null=False),
    _time("created_at", null=False),
    _time("started_at"),
    _time("ended_at"),
    _time("removed_at"),  # when its bodies were removed
    Index(None, "endpoint", "status"),
    Index(None, "expires_at"),
)

# -- monitoring -------------------------------------------------------------------------------------------------------

traffic = Table(
    "traffic",
    metadata,
    Column("endpoint", String(63), primary_key=True),
    Column("variant", String(63), primary_key=True),
    Column("period_seconds", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, primary_key=True, autoincrement=False),  # start of the period
    Column("count", BigInteger, nullable=False),
    Column("errors_4xx", BigInteger, nullable=False),
    Column("errors_5xx", BigInteger, nullable=False),
    _json("latency"),
)
series = Table(
    "series",  # any other number over time: drift, quality, labels
    metadata,
    Column("scope", String(127), primary_key=True),
    Column("name", String(127), primary_key=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=True),
    Column("count", BigInteger, nullable=False),
)
reports = Table(
    "reports",
    metadata,
    _id(),
    Column("endpoint", String(63), nullable=False),
    Column("variant", String(63), nullable=False),
    _text("kind", null=False),  # drift, quality, labelled or shadow
    _time("start_at", null=False),
    _time("end_at", null=False),
    Column("fired", Boolean, nullable=False),
    _json("body"),
    Index(None, "endpoint", "kind", "end_at"),
)
labels = Table(
    "labels",
    metadata,
    Column("endpoint", String(63), primary_key=True),
    Column("join_id", String(127), primary_key=True),
    _json("value"),
    _time("at", null=False),
    _text("by", null=False),
    Column("request", String(40), nullable=True, index=True),  # the request that it was joined with
    _time("joined_at"),  # null: still to be looked for
    Index(None, "endpoint", "joined_at"),
)
alarms = Table(
    "alarms",
    metadata,
    _id(),
    _status(),
    Column("name", String(127), nullable=False, unique=True),
    _text("project"),
    _text("endpoint"),
    _json("definition"),
    _json("actions"),
    Column("enabled", Boolean, nullable=False),
    _text("reason"),
    _time("since_at", null=False),
    _time("evaluated_at"),
    _time("created_at", null=False),
)
retrainings = Table(
    "retrainings",
    metadata,
    _id(),
    _status(),
    Column("project", String(63), nullable=False),
    _text("endpoint"),
    _json("cause"),
    Column("delivery", String(255), nullable=False, unique=True),
    _text("asset"),
    _text("push"),
    _text("execution"),
    _text("reason"),
    _text("by", null=False),
    _time("created_at", null=False),
    _time("ended_at"),
    Index(None, "project", "created_at"),
)

# -- triggers and notifications ---------------------------------------------------------------------------------------

triggers = Table(
    "triggers",
    metadata,
    _id(),
    Column("name", String(127), nullable=False, unique=True),
    _text("project", null=False),
    _text("kind", null=False),  # cron, data, alarm
    _json("settings"),
    Column("enabled", Boolean, nullable=False),
    _time("next_at"),
    _text("last"),
    _time("created_at", null=False),
)
topics = Table(
    "topics",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    _text("project"),
    _json("match"),  # which events it carries
    _time("created_at", null=False),
)
subscriptions = Table(
    "subscriptions",
    metadata,
    _id(),
    Column("topic", String(63), nullable=False),
    _text("kind", null=False),  # webhook or slack
    _text("url", null=False),
    _text("secret"),  # name of the secret that signs
    Column("enabled", Boolean, nullable=False),
    _time("created_at", null=False),
    UniqueConstraint("topic", "kind", "url"),
)
deliveries = Table(
    "deliveries",
    metadata,
    _id(),
    _status(),
    Column("subscription", String(40), nullable=False),
    Column("event", BigInteger, nullable=False),
    _json("body"),
    Column("tries", Integer, nullable=False),
    _time("next_at"),
    _json("answers"),
    _time("created_at", null=False),
    _time("ended_at"),
    UniqueConstraint("subscription", "event"),
    Index(None, "status"),
)
objects = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    _json("parts"),  # SHA-256 of each 8 MiB
    _time("created_at", null=False),
)

# noun -> table of the records that ``store.records`` writes
NOUNS: dict[str, Table] = {
    "user": users,
    "key": keys,
    "project": projects,
    "push": pushes,
    "environment": environments,
    "environment_version": environment_versions,
    "asset": assets,
    "pipeline": pipelines,
    "execution": executions,
    "step": steps,
    "job": jobs,
    "attempt": attempts,
    "run": runs,
    "model": models,
    "version": versions,
    "evaluation": evaluations,
    "compilation": compilations,
    "alias": aliases,
    "endpoint": endpoints,
    "variant": variants,
    "rollout": rollouts,
    "test": endpoint_tests,
    "test_run": test_runs,
    "batch": batches,
    "invocation": invocations,
    "function": functions,
    "alarm": alarms,
    "retraining": retrainings,
    "trigger": triggers,
    "topic": topics,
    "subscription": subscriptions,
    "delivery": deliveries,
}
