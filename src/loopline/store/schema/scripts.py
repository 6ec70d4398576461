"""Programs that run by the contract of a container, and the environments that image names stand for."""

from sqlalchemy import Column, Index, String, Table, UniqueConstraint

from loopline.store.schema.columns import id_, json_, metadata, text_, time_

scripts = Table(
    "scripts",
    metadata,
    id_(),
    Column("contract", String(16), nullable=False),  # training or processing
    Column("name", String(63), nullable=False),
    Column("step", String(40), nullable=False, unique=True),  # its life is the step's
    text_("execution", null=False),
    json_("definition"),  # as of domain.scripts.Script
    json_("given"),  # what its author wrote
    json_("inputs"),  # what the channels and the code were when it began: digests
    json_("result"),
    json_("warnings"),
    text_("environment"),
    text_("by", null=False),
    time_("created_at", null=False),
    UniqueConstraint("contract", "name"),
    Index(None, "created_at"),
)
images = Table(
    "images",
    metadata,
    id_(),
    Column("name", String(255), nullable=False, unique=True),  # of an image's repository
    text_("requirements", null=False),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("changed_at", null=False),
)
