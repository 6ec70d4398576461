"""Who signs requests, by which names roles go elsewhere, and what callers were warned of."""

from sqlalchemy import BigInteger, Column, String, Table, UniqueConstraint

from loopline.store.schema.columns import id_, json_, metadata, text_, time_

access_keys = Table(  # the secret stands sealed among the secrets, as access_key/ID
    "access_keys",
    metadata,
    id_(),
    text_("user", null=False),  # the user's name
    text_("name"),  # of temporary keys: the key, or the attempt at a job, with which they end
    Column("role", String(16), nullable=False),
    json_("endpoints"),  # names, or ["*"]; for invokers
    text_("alias"),  # the name of a role alias, of temporary keys
    text_("session"),
    Column("token_sha256", String(64), nullable=True),  # of temporary keys
    text_("created_by", null=False),
    time_("created_at", null=False),
    time_("expires_at"),
    time_("revoked_at"),
)
role_aliases = Table(
    "role_aliases",
    metadata,
    id_(),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    text_("path", null=False),
    text_("description"),
    json_("trust"),  # documents are kept and shown; roles alone decide
    json_("policies"),  # {name: document}
    json_("attached"),  # ARNs
    text_("created_by", null=False),
    time_("created_at", null=False),
)
warnings = Table(  # one row for each text about one thing
    "warnings",
    metadata,
    id_(),
    text_("source", null=False),  # what was asked, such as sagemaker.CreateTrainingJob
    Column("digest", String(64), nullable=False),  # of source and text
    text_("text", null=False),
    text_("by", null=False),
    text_("request_id"),  # of the last time
    Column("count", BigInteger, nullable=False),
    time_("first_at", null=False),
    time_("last_at", null=False),
    UniqueConstraint("digest"),
)
