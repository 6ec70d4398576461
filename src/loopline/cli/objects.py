"""Objects: list, show, put, get, delete. An object is named as ``s3://BUCKET/KEY``."""

from pathlib import Path
from typing import Any

import click

from loopline.cli.assets import chunks
from loopline.cli.runs import save
from loopline.cli.session import Session, limit_option, options

BUCKETS = (("BUCKET", "name"), ("VERSIONS", "versioning"), ("BY", "by"), ("CREATED", "created_at"))
OBJECTS = (
    ("KEY", "key"),
    ("BYTES", "size_bytes"),
    ("TYPE", "content_type"),
    ("BY", "by"),
    ("CREATED", "created_at"),
)
SHOWN = (
    *("bucket", "key", "version", "size_bytes", "etag", "digest", "content_type"),
    *("headers", "metadata", "tags", "checksums", "source", "by", "created_at"),
)


def _events(rule: dict[str, Any]) -> str:
    return ", ".join(rule["events"])


RULES = (("ID", "id"), ("TOPIC", "topic"), ("EVENTS", _events), ("PREFIX", "prefix"), ("SUFFIX", "suffix"))


@click.group()
def objects() -> None:
    """Buckets and their objects."""


def _place(uri: str) -> tuple[str, str]:
    from loopline.domain.objects import split_uri

    return split_uri(uri)


def _object(uri: str) -> tuple[str, str]:
    bucket, key = _place(uri)
    if not key:
        raise click.UsageError(f"{uri} is a bucket; name an object: s3://{bucket}/KEY")
    return bucket, key


@objects.command("list")
@click.argument("uri", required=False)
@click.option("--all", "whole", is_flag=True, help="Every key below, not only the next level.")
@limit_option
@options
def list_(session: Session, uri: str | None, whole: bool, limit: int) -> None:
    """Buckets; or what begins with s3://BUCKET/PREFIX, up to the next slash."""
    if uri is None:
        session.table(session.client.get("buckets"), BUCKETS)
        return
    bucket, prefix = _place(uri)
    answer = session.client.get(
        "buckets", bucket, "objects", prefix=prefix, delimiter="" if whole else "/", limit=limit
    )
    rolled: list[dict[str, Any]] = [{"key": each} for each in answer["prefixes"]]
    items = sorted(rolled + answer["items"], key=lambda item: str(item["key"]))
    session.table(answer if session.as_json else {**answer, "items": items}, OBJECTS)


@objects.command()
@click.argument("uri")
@click.option("--version", help="Default: the current one.")
@options
def show(session: Session, uri: str, version: str | None) -> None:
    """What is known of s3://BUCKET/KEY."""
    bucket, key = _object(uri)
    session.record(session.client.get("buckets", bucket, "object", key=key, version=version), SHOWN)


@objects.command()
@click.argument("uri")
@click.option("--version", help="Default: the current one.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def get(session: Session, uri: str, version: str | None, output: Path | None) -> None:
    """Fetch the bytes of s3://BUCKET/KEY."""
    bucket, key = _object(uri)
    save(session.client.download("buckets", bucket, "content", key=key, version=version), output)


@objects.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("uri")
@click.option("--type", "content_type", default="application/octet-stream", show_default=True)
@click.option("--make-bucket", is_flag=True, help="Make the bucket where there is none.")
@options
def put(session: Session, file: Path, uri: str, content_type: str, make_bucket: bool) -> None:
    """Store a file as s3://BUCKET/KEY; with a URI that ends in a slash, under its own name."""
    bucket, key = _place(uri)
    key = key + file.name if not key or key.endswith("/") else key
    if make_bucket and bucket not in [row["name"] for row in session.client.get("buckets")["items"]]:
        session.client.post("buckets", bucket=bucket)
    size = file.stat().st_size
    made = session.client.upload(
        "PUT", "buckets", bucket, "content", data=chunks(file), size=size, content_type=content_type, key=key
    )
    session.done(made, f"s3://{bucket}/{key}: {made['size_bytes']} bytes")


@objects.command()
@click.argument("uri")
@click.option("--version", help="This version, for good.")
@options
def delete(session: Session, uri: str, version: str | None) -> None:
    """Delete s3://BUCKET/KEY; where the bucket keeps versions, they stay."""
    bucket, key = _object(uri)
    done = session.client.delete("buckets", bucket, "object", key=key, version=version)
    session.done(done, f"s3://{bucket}/{key} is deleted")


@objects.command()
@click.argument("uri")
@click.argument("topic")
@click.option("--suffix", default="", help="Only keys that end so.")
@click.option("--event", "events", multiple=True, help="put, copy, upload, delete or mark (default: the first three).")
@options
def notify(session: Session, uri: str, topic: str, suffix: str, events: tuple[str, ...]) -> None:
    """Tell a topic's subscribers of objects below s3://BUCKET/PREFIX."""
    bucket, prefix = _place(uri)
    rule = {"topic": topic, "prefix": prefix, "suffix": suffix, **({"events": list(events)} if events else {})}
    rules = session.client.get("buckets", bucket, "notifications")["items"]
    made = session.client.put("buckets", bucket, "notifications", rules=[*rules, rule])
    session.done(made, f"the topic {topic} is told of s3://{bucket}/{prefix}*{suffix}")


@objects.command()
@click.argument("bucket")
@click.option("--remove", "gone", help="The id of a rule.")
@options
def notifications(session: Session, bucket: str, gone: str | None) -> None:
    """Which topics are told of a bucket's objects."""
    found = session.client.get("buckets", bucket, "notifications")
    if gone is not None:
        kept = [rule for rule in found["items"] if rule["id"] != gone]
        if len(kept) == len(found["items"]):
            raise click.UsageError(f"the bucket {bucket} has no rule {gone}")
        found = session.client.put("buckets", bucket, "notifications", rules=kept)
    session.table(found, RULES)
