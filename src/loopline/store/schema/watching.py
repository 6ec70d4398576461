"""What is watched beside traffic: metrics that people send, and dashboards."""

from sqlalchemy import BigInteger, Column, Double, Index, Integer, String, Table

from loopline.store.schema.columns import id_, json_, metadata, text_, time_

metrics = Table(
    "metrics",
    metadata,
    Column("key", String(64), primary_key=True),  # of namespace, name and dimensions
    Column("namespace", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    json_("dimensions"),
    time_("seen_at", null=False),
    Index(None, "namespace", "name"),
)
metric_points = Table(
    "metric_points",
    metadata,
    Column("metric", String(64), primary_key=True),
    Column("period_seconds", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("unit", String(32), primary_key=True),
    Column("count", Double, nullable=False),
    Column("total", Double, nullable=False),
    Column("minimum", Double, nullable=False),
    Column("maximum", Double, nullable=False),
    json_("buckets"),
)
dashboards = Table(
    "dashboards",
    metadata,
    id_(),
    Column("name", String(255), nullable=False, unique=True),
    text_("body", null=False),
    text_("by", null=False),
    time_("created_at", null=False),
    time_("changed_at", null=False),
)
