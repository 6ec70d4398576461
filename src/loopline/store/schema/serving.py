"""What is served and watched: models, endpoints, their traffic and what is told of it."""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, String, Table, UniqueConstraint

from loopline.store.schema.columns import SERIAL, id_, json_, metadata, status_, text_, time_

# -- registry ---------------------------------------------------------------------------------------------------------

models = Table(
    "models",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    text_("project"),
    Column("gate_mode", String(16), nullable=False),  # enforce, advisory, off
    json_("gate"),
    json_("approval"),
    text_("description"),
    Column("last_version", Integer, nullable=False),
    text_("created_by", null=False),
    time_("created_at", null=False),
)
versions = Table(
    "versions",
    metadata,
    id_(),
    status_(),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    json_("artifact"),  # digest, kind, format, executable, trust, signature
    text_("handler", null=False),
    text_("tree"),
    text_("environment"),
    json_("signature"),
    json_("baseline"),
    json_("warmup"),
    json_("metrics"),
    json_("metadata"),
    text_("execution"),
    text_("step"),
    text_("run"),
    text_("evaluation"),  # the latest finished one
    text_("servable"),  # what serves it, where it was made of files and not by a pipeline
    json_("copied_from"),
    text_("requested_by", null=False),
    time_("created_at", null=False),
    text_("decided_by"),
    text_("policy"),
    text_("comment"),
    time_("decided_at"),
    json_("evidence"),
    UniqueConstraint("model", "number"),
    UniqueConstraint("execution", "step"),
    Index(None, "model", "status", "number"),
)
evaluations = Table(
    "evaluations",
    metadata,
    id_(),
    status_(),
    text_("version", null=False),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    text_("champion"),  # the version compared with
    json_("policy"),
    json_("asset"),
    json_("jobs"),
    json_("sources"),  # the files that a client's figures come from, where nothing was measured here
    json_("metrics"),
    json_("verdict"),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "version"),
)
scores = Table(
    "scores",  # predictions of a version on a data asset, kept so that nobody scores twice
    metadata,
    Column("key", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    time_("created_at", null=False),
)
compilations = Table(
    "compilations",
    metadata,
    id_(),
    status_(),
    text_("version", null=False),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    Column("format", String(16), nullable=False),
    Column("tolerance", Double, nullable=False),
    text_("job"),
    json_("report"),  # what differs, or why there is no conversion
    json_("artifact"),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "version"),
)
aliases = Table(
    "aliases",
    metadata,
    id_(),
    Column("model", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    time_("changed_at", null=False),
    UniqueConstraint("model", "name"),
)

# -- traffic ----------------------------------------------------------------------------------------------------------

servables = Table(
    "servables",  # what a variant runs: model files, code and an environment
    metadata,
    id_(),
    status_(),
    Column("name", String(63), nullable=True, unique=True),  # null: it belongs to a version, or was deleted
    text_("version"),  # the version's id; null is ungated
    Column("model", String(63), nullable=True),
    Column("number", Integer, nullable=True),
    text_("image"),  # what its creator called the environment
    text_("handler", null=False),
    text_("program"),  # the file of the code that is asked
    json_("source"),  # the objects that it is made of: {"data", "code"}, each with uri, digest and size_bytes
    json_("artifact"),  # the model files, once they are unpacked, as a version has them
    json_("code"),  # the code, where it does not stand among the model files
    json_("variables"),
    text_("requirements"),
    text_("environment"),
    json_("given"),  # what its author wrote
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
)
blueprints = Table(
    "blueprints",  # the variants that an endpoint is brought to, all at once
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    json_("variants"),  # [{"name", "servable" (its id), "weight", "instances", "copies"}]
    json_("capture"),  # what of its requests goes to objects
    json_("results"),  # where answers of asynchronous invocations go: {"uri", "failures_uri"}
    json_("given"),  # what its author wrote
    text_("by", null=False),
    time_("created_at", null=False),
)
endpoints = Table(
    "endpoints",
    metadata,
    id_(),
    status_(),
    Column("name", String(63), nullable=False, unique=True),
    text_("project"),
    text_("model"),
    json_("settings"),
    text_("reason"),
    text_("created_by", null=False),
    time_("created_at", null=False),
)
variants = Table(
    "variants",
    metadata,
    id_(),
    status_(),
    Column("endpoint", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    text_("version"),  # the version's id; null is ungated
    text_("servable"),  # the servable's id, where it is not the version itself that is served
    Column("called", String(63), nullable=True),  # what callers know it as, where several of one name follow each other
    Column("model", String(63), nullable=True),
    Column("number", Integer, nullable=True),
    Column("weight", Double, nullable=False),
    Column("shadow", Double, nullable=True),  # percent of the callers' requests that it gets a copy of
    Column("instances", Integer, nullable=False),
    text_("digest", null=False),  # of the model directory
    json_("server"),
    text_("reason"),
    time_("warm_until"),
    time_("created_at", null=False),
    UniqueConstraint("endpoint", "name"),
)
rollouts = Table(
    "rollouts",
    metadata,
    id_(),
    status_(),
    Column("endpoint", String(63), nullable=False),
    text_("kind", null=False),  # release, rollback, shadow, standby or weights
    text_("strategy", null=False),
    text_("variant", null=False),
    text_("predecessor"),
    json_("plan"),
    Column("step", Integer, nullable=False),
    Column("snapshot", BigInteger, nullable=True),  # the number that every live gateway must acknowledge
    time_("step_at"),
    json_("decisions"),
    json_("trigger"),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "endpoint", "created_at"),
)
snapshots = Table(
    "snapshots",
    metadata,
    Column("number", SERIAL, primary_key=True, autoincrement=True),
    time_("at", null=False),
    json_("body"),
    text_("reason"),
    text_("by", null=False),
)
functions = Table(
    "functions",
    metadata,
    id_(),
    status_(),
    Column("name", String(63), nullable=False, unique=True),
    text_("project", null=False),
    json_("settings"),  # as in [[functions]]
    text_("tree", null=False),
    text_("environment"),
    json_("server"),  # the processes that answer
    json_("successor"),  # those that will, once they are ready
    text_("reason"),
    text_("by", null=False),
    time_("since_at"),  # when its processes were asked for
    time_("created_at", null=False),
    time_("changed_at", null=False),
)
gateways = Table(
    "gateways",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("number", BigInteger, nullable=False),
    time_("at", null=False),
)

endpoint_tests = Table(
    "endpoint_tests",  # what an endpoint's versions have to show before traffic moves to them
    metadata,
    id_(),
    Column("endpoint", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    text_("kind", null=False),  # golden, call or load
    json_("definition"),
    json_("cases"),  # golden: requests with the answers that are expected
    text_("source", null=False),  # api, loop.toml or captured
    text_("by", null=False),
    time_("changed_at", null=False),
    UniqueConstraint("endpoint", "name"),
)
test_runs = Table(
    "test_runs",
    metadata,
    id_(),
    status_(),
    Column("endpoint", String(63), nullable=False),
    Column("variant", String(63), nullable=False),
    Column("model", String(63), nullable=True),
    Column("number", Integer, nullable=True),
    text_("rollout"),  # null: asked for by a person
    text_("stage", null=False),
    json_("tests"),  # names, in the order in which they run
    json_("results"),
    time_("deadline_at"),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("started_at"),
    time_("ended_at"),
    Index(None, "endpoint", "created_at"),
    Index(None, "rollout"),
)

batches = Table(
    "batches",
    metadata,
    id_(),
    status_(),
    Column("project", String(63), nullable=True),
    Column("model", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    text_("version", null=False),
    json_("input"),  # digest, name, format, and the asset that it is
    json_("settings"),
    text_("job"),
    json_("output"),  # digest, size_bytes, name, columns
    json_("errors"),  # the same of the rows set aside
    text_("asset"),  # name:version that the output became
    Column("rows", BigInteger, nullable=True),
    Column("bad", BigInteger, nullable=True),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("started_at"),
    time_("ended_at"),
    Index(None, "model", "created_at"),
    Index(None, "status"),
)
invocations = Table(
    "invocations",  # asynchronous ones; their bodies are files named by id
    metadata,
    id_(),
    status_(),
    Column("endpoint", String(63), nullable=False),
    text_("key"),
    text_("by", null=False),
    text_("content_type", null=False),
    Column("size_bytes", BigInteger, nullable=False),
    json_("answer"),  # status, content_type, size_bytes
    text_("accept"),  # the content type that the caller wants
    json_("destination"),  # the objects that its answer goes to: {"uri", "failure_uri"}
    text_("inference_id"),  # the caller's, for labels that arrive later
    text_("request"),  # the id under which the request log has it
    Column("tries", Integer, nullable=False),
    text_("reason"),
    time_("expires_at", null=False),
    time_("created_at", null=False),
    time_("started_at"),
    time_("ended_at"),
    time_("removed_at"),  # when its bodies were removed
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
    json_("latency"),
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
    id_(),
    Column("endpoint", String(63), nullable=False),
    Column("variant", String(63), nullable=False),
    text_("kind", null=False),  # drift, quality, labelled or shadow
    time_("start_at", null=False),
    time_("end_at", null=False),
    Column("fired", Boolean, nullable=False),
    json_("body"),
    Index(None, "endpoint", "kind", "end_at"),
)
labels = Table(
    "labels",
    metadata,
    Column("endpoint", String(63), primary_key=True),
    Column("join_id", String(127), primary_key=True),
    json_("value"),
    time_("at", null=False),
    text_("by", null=False),
    Column("request", String(40), nullable=True, index=True),  # the request that it was joined with
    time_("joined_at"),  # null: still to be looked for
    Index(None, "endpoint", "joined_at"),
)
alarms = Table(
    "alarms",
    metadata,
    id_(),
    status_(),
    Column("name", String(127), nullable=False, unique=True),
    text_("project"),
    text_("endpoint"),
    json_("definition"),
    json_("actions"),
    Column("enabled", Boolean, nullable=False),
    text_("reason"),
    time_("since_at", null=False),
    time_("evaluated_at"),
    time_("created_at", null=False),
)
retrainings = Table(
    "retrainings",
    metadata,
    id_(),
    status_(),
    Column("project", String(63), nullable=False),
    text_("endpoint"),
    json_("cause"),
    Column("delivery", String(255), nullable=False, unique=True),
    text_("asset"),
    text_("push"),
    text_("execution"),
    text_("reason"),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("ended_at"),
    Index(None, "project", "created_at"),
)

# -- triggers and notifications ---------------------------------------------------------------------------------------

triggers = Table(
    "triggers",
    metadata,
    id_(),
    Column("name", String(127), nullable=False, unique=True),
    text_("project", null=False),
    text_("kind", null=False),  # cron, data, alarm
    json_("settings"),
    Column("enabled", Boolean, nullable=False),
    time_("next_at"),
    text_("last"),
    time_("created_at", null=False),
)
topics = Table(
    "topics",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    text_("project"),
    json_("match"),  # which events it carries
    time_("created_at", null=False),
    json_("settings"),  # what its owner says of it
)
subscriptions = Table(
    "subscriptions",
    metadata,
    id_(),
    Column("topic", String(63), nullable=False),
    text_("kind", null=False),  # webhook, slack, sns or email
    text_("url", null=False),
    text_("secret"),  # name of the secret that signs
    Column("enabled", Boolean, nullable=False),
    time_("created_at", null=False),
    time_("pending_until"),  # how long its receiver may still say that it wants it; null: it does
    json_("settings"),  # what the form of its messages needs
    UniqueConstraint("topic", "kind", "url"),
)
deliveries = Table(
    "deliveries",
    metadata,
    id_(),
    status_(),
    Column("subscription", String(40), nullable=False),
    Column("event", BigInteger, nullable=False),
    json_("body"),
    Column("tries", Integer, nullable=False),
    time_("next_at"),
    json_("answers"),
    time_("created_at", null=False),
    time_("ended_at"),
    UniqueConstraint("subscription", "event"),
    Index(None, "status"),
)
blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    json_("parts"),  # SHA-256 of each 8 MiB
    time_("created_at", null=False),
)

# noun -> table of the records that ``store.records`` writes
