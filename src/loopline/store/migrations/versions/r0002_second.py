"""The schema beyond 0001. Written by ``python -m loopline.store.migrations``: do not edit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:  # noqa: PLR0915 - one statement for each table and index
    op.create_table(
        "access_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("endpoints", sa.JSON(), nullable=True),
        sa.Column("alias", sa.Text(), nullable=True),
        sa.Column("session", sa.Text(), nullable=True),
        sa.Column("token_sha256", sa.String(length=64), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_keys")),
    )
    op.create_table(
        "blueprints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("variants", sa.JSON(), nullable=True),
        sa.Column("capture", sa.JSON(), nullable=True),
        sa.Column("results", sa.JSON(), nullable=True),
        sa.Column("given", sa.JSON(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blueprints")),
        sa.UniqueConstraint("name", name=op.f("uq_blueprints_name")),
    )
    op.create_table(
        "buckets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("region", sa.Text(), nullable=True),
        sa.Column("versioning", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_buckets")),
        sa.UniqueConstraint("name", name=op.f("uq_buckets_name")),
    )
    op.create_table(
        "dashboards",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dashboards")),
        sa.UniqueConstraint("name", name=op.f("uq_dashboards_name")),
    )
    with op.batch_alter_table("evaluations", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("sources", sa.JSON(), nullable=True))
    with op.batch_alter_table("executions", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("selection", sa.JSON(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_executions_pipeline_executions_created_at"), ["pipeline", "created_at"], unique=False
        )
    op.create_table(
        "images",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("requirements", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
        sa.UniqueConstraint("name", name=op.f("uq_images_name")),
    )
    with op.batch_alter_table("invocations", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("accept", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("destination", sa.JSON(), nullable=True))
    with op.batch_alter_table("jobs", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("retry", sa.JSON(), nullable=True))
    op.create_table(
        "metric_points",
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("period_seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.Column("count", sa.Double(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.Column("minimum", sa.Double(), nullable=False),
        sa.Column("maximum", sa.Double(), nullable=False),
        sa.Column("buckets", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("metric", "period_seconds", "at", "unit", name=op.f("pk_metric_points")),
    )
    op.create_table(
        "metrics",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("namespace", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("dimensions", sa.JSON(), nullable=True),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_metrics")),
    )
    with op.batch_alter_table("metrics", recreate="always") as batch_op:
        batch_op.create_index(batch_op.f("ix_metrics_namespace_metrics_name"), ["namespace", "name"], unique=False)
    op.create_table(
        "objects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=40), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
        sa.Column("marker", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("headers", sa.JSON(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=True),
        sa.Column("checksums", sa.JSON(), nullable=True),
        sa.Column("parts", sa.JSON(), nullable=True),
        sa.Column("source", sa.JSON(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint("bucket", "key", "number", name=op.f("uq_objects_bucket_key_number")),
    )
    with op.batch_alter_table("objects", recreate="always") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_objects_bucket_objects_current_objects_key"), ["bucket", "current", "key"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_objects_digest"), ["digest"], unique=False)
    with op.batch_alter_table("pipelines", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("definition", sa.Text(), nullable=True))
    op.create_table(
        "role_aliases",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("trust", sa.JSON(), nullable=True),
        sa.Column("policies", sa.JSON(), nullable=True),
        sa.Column("attached", sa.JSON(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_aliases")),
        sa.UniqueConstraint("name", name=op.f("uq_role_aliases_name")),
    )
    op.create_table(
        "scripts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("contract", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("step", sa.String(length=40), nullable=False),
        sa.Column("execution", sa.Text(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=True),
        sa.Column("given", sa.JSON(), nullable=True),
        sa.Column("inputs", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=True),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scripts")),
        sa.UniqueConstraint("contract", "name", name=op.f("uq_scripts_contract_name")),
        sa.UniqueConstraint("step", name=op.f("uq_scripts_step")),
    )
    with op.batch_alter_table("scripts", recreate="always") as batch_op:
        batch_op.create_index(batch_op.f("ix_scripts_created_at"), ["created_at"], unique=False)
    op.create_table(
        "servables",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=True),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("model", sa.String(length=63), nullable=True),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("handler", sa.Text(), nullable=False),
        sa.Column("program", sa.Text(), nullable=True),
        sa.Column("source", sa.JSON(), nullable=True),
        sa.Column("artifact", sa.JSON(), nullable=True),
        sa.Column("code", sa.JSON(), nullable=True),
        sa.Column("variables", sa.JSON(), nullable=True),
        sa.Column("requirements", sa.Text(), nullable=True),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("given", sa.JSON(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servables")),
        sa.UniqueConstraint("name", name=op.f("uq_servables_name")),
    )
    op.create_table(
        "stored_pipelines",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("max_parallel", sa.Integer(), nullable=True),
        sa.Column("delivery", sa.String(length=255), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stored_pipelines")),
        sa.UniqueConstraint("name", name=op.f("uq_stored_pipelines_name")),
    )
    with op.batch_alter_table("subscriptions", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("pending_until", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("settings", sa.JSON(), nullable=True))
    op.create_table(
        "tags",
        sa.Column("record", sa.String(length=40), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("noun", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("record", "key", name=op.f("pk_tags")),
    )
    with op.batch_alter_table("tags", recreate="always") as batch_op:
        batch_op.create_index(batch_op.f("ix_tags_noun_tags_key"), ["noun", "key"], unique=False)
    with op.batch_alter_table("topics", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("settings", sa.JSON(), nullable=True))
    op.create_table(
        "upload_parts",
        sa.Column("upload", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("md5", sa.Text(), nullable=False),
        sa.Column("checksums", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("upload", "number", name=op.f("pk_upload_parts")),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("options", sa.JSON(), nullable=True),
        sa.Column("object", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    with op.batch_alter_table("uploads", recreate="always") as batch_op:
        batch_op.create_index(batch_op.f("ix_uploads_bucket_uploads_key"), ["bucket", "key"], unique=False)
    with op.batch_alter_table("variants", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("servable", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("called", sa.String(length=63), nullable=True))
    with op.batch_alter_table("versions", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("servable", sa.Text(), nullable=True))
    op.create_table(
        "warnings",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_warnings")),
        sa.UniqueConstraint("digest", name=op.f("uq_warnings_digest")),
    )
