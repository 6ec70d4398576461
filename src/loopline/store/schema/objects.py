"""Buckets, their objects, and uploads in parts. An object's bytes are a blob, found by its digest."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, String, Table, Text, UniqueConstraint

from loopline.store.schema.columns import id_, json_, metadata, status_, text_, time_

# Keys are in the order of their UTF-8 bytes: SQLite's own, and on PostgreSQL that of the C locale.
_KEY = Text().with_variant(Text(collation="C"), "postgresql")

buckets = Table(
    "buckets",
    metadata,
    id_(),
    Column("name", String(63), nullable=False, unique=True),
    text_("region"),
    text_("versioning"),  # null, Enabled, Suspended
    json_("tags"),
    text_("by", null=False),
    time_("created_at", null=False),
)
objects = Table(  # one row for each version of each key
    "objects",
    metadata,
    id_(),
    text_("bucket", null=False),
    Column("key", _KEY, nullable=False),
    Column("number", BigInteger, nullable=False),  # the highest of its key is the current one
    Column("version", String(40), nullable=False),  # its id, or "null" while the bucket kept no versions
    Column("current", Boolean, nullable=False),
    Column("marker", Boolean, nullable=False),  # says that the key is deleted, and has no bytes
    Column("digest", String(64), nullable=True),
    Column("size_bytes", BigInteger, nullable=False),
    text_("etag"),
    text_("content_type"),
    json_("headers"),  # cache-control and the like, given back as they came
    json_("metadata"),
    json_("tags"),
    json_("checksums"),  # by algorithm, base 64; "type": FULL_OBJECT or COMPOSITE
    json_("parts"),  # of one that came in parts: [{"size_bytes", "checksums"}]
    json_("source"),  # how it came: {"kind": "put" | "copy" | "upload" | "job", ...}
    text_("by", null=False),
    time_("created_at", null=False),
    UniqueConstraint("bucket", "key", "number"),
    Index(None, "digest"),
)
Index(None, objects.c.bucket, objects.c.current, objects.c.key)
uploads = Table(
    "uploads",
    metadata,
    id_(),
    status_(),
    text_("bucket", null=False),
    Column("key", _KEY, nullable=False),
    json_("options"),  # what the object will have: content type, metadata, tags, checksum algorithm
    text_("object"),  # the version that came of it
    text_("by", null=False),
    time_("created_at", null=False),
    time_("changed_at"),
    Index(None, "bucket", "key"),
)
upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", String(40), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    text_("file", null=False),  # its name in the upload's folder
    Column("size_bytes", BigInteger, nullable=False),
    text_("md5", null=False),
    json_("checksums"),
    time_("created_at", null=False),
)
