"""Buckets and the keys of objects as values: addresses, names, ranges, conditions. Pure functions.

Sources: Amazon S3 User Guide, "Bucket naming rules" and "Naming Amazon S3 objects"; Amazon S3 API Reference, GetObject
and PutObject; RFC 9110 for ranges and conditions.
"""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopline.errors import InvalidInput, NotFound, PreconditionFailed, RangeNotSatisfiable

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048  # names and values of an object's own metadata together
MAX_TAGS = 10
MAX_PARTS = 10_000
MIN_PART_BYTES = 5 << 20  # of every part but the last
MAX_PART_BYTES = 5 << 30
MAX_OBJECT_BYTES = 5 << 40
UNVERSIONED = "null"  # the version id of what was put while a bucket kept no versions

_SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RESERVED_STARTS = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_ENDS = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_LAST_CHARACTER = chr(0x10FFFF)


def check_bucket(name: object) -> str:
    """``name`` itself when a bucket may be called so; raises ``InvalidInput`` otherwise."""
    if not isinstance(name, str) or not _BUCKET.fullmatch(name) or ".." in name or _is_address(name):
        raise InvalidInput(
            f"{str(name)[:80]!r} is not a name for a bucket: use 3 to 63 lower-case letters, digits, '-' or '.', "
            "beginning and ending with a letter or a digit, without '..', and no IP address",
            kind="bucket_name",
        )
    if name.startswith(_RESERVED_STARTS) or name.endswith(_RESERVED_ENDS):
        reserved = ", ".join((*_RESERVED_STARTS, *_RESERVED_ENDS))
        raise InvalidInput(
            f"{name!r} is not a name for a bucket: these beginnings and ends are reserved: {reserved}",
            kind="bucket_name",
        )
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def check_key(key: object) -> str:
    """``key`` itself when an object may be called so: 1 to 1024 bytes of UTF-8 without NUL; raises ``InvalidInput``.

    A key is never a path: ``../x``, ``/x`` and keys with line feeds are names like any others.
    """
    if not isinstance(key, str) or not key:
        raise InvalidInput("the key of an object is a text of 1 to 1024 bytes in UTF-8")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInput("the key of an object must be text that UTF-8 can hold") from None
    if "\0" in key:
        raise InvalidInput("the key of an object holds no NUL character")
    if size > MAX_KEY_BYTES:
        raise InvalidInput(
            f"the key of an object has at most {MAX_KEY_BYTES} bytes in UTF-8, this one has {size}", kind="key_length"
        )
    return key


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """An object's own metadata with lower-case names; raises ``InvalidInput`` when it is larger than 2 KB."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise InvalidInput(
            f"an object's metadata has at most {MAX_METADATA_BYTES} bytes, this has {size}", kind="metadata"
        )
    return {name.lower(): value for name, value in metadata.items()}


def check_tags(tags: dict[str, str]) -> dict[str, str]:
    """An object's tags: at most 10, names of 1 to 128 characters, values of at most 256; raises ``InvalidInput``."""
    if len(tags) > MAX_TAGS:
        raise InvalidInput(f"an object has at most {MAX_TAGS} tags, not {len(tags)}", kind="tags")
    for name, value in tags.items():
        if not 1 <= len(name) <= 128 or len(value) > 256:
            raise InvalidInput(
                "the name of a tag has 1 to 128 characters, its value at most 256", kind="tags", tag=name[:128]
            )
    return tags


def split_uri(uri: object) -> tuple[str, str]:
    """(bucket, key) of ``s3://bucket/key``; the key is empty for the bucket as a whole. Raises ``InvalidInput``."""
    if not isinstance(uri, str) or not uri.startswith(_SCHEME):
        raise InvalidInput(f"{str(uri)[:200]!r} is not the address of an object; write s3://BUCKET/KEY")
    bucket, _, key = uri[len(_SCHEME) :].partition("/")
    return check_bucket(bucket), check_key(key) if key else ""


def join_uri(bucket: str, key: str) -> str:
    """``s3://bucket/key``."""
    return f"{_SCHEME}{bucket}/{key}"


def following(prefix: str) -> str | None:
    """The smallest text that comes after every text with this prefix, in the order of code points (that of UTF-8).

    None when there is none: every text, and one of last characters only, has nothing behind it.
    """
    kept = prefix.rstrip(_LAST_CHARACTER)
    if not kept:
        return None
    code = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if code == 0xD800 else code)  # no text has half a surrogate pair


# -- ranges -----------------------------------------------------------------------------------------------------------


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, number of bytes) that a ``Range`` header asks for of ``size`` bytes; None for the whole.

    A header that is no single range of bytes asks for the whole, as RFC 9110 says. Raises ``RangeNotSatisfiable``.
    """
    found = _RANGE.fullmatch((header or "").strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        first = size - length
    else:
        first = int(found[1])
        last = int(found[2]) if found[2] else size - 1
        if found[2] and last < first:
            return None
        length = min(last, size - 1) - first + 1
    if length <= 0 or first >= size:
        raise RangeNotSatisfiable(f"there are {size} bytes, and none of them is in {header}", size_bytes=size)
    return first, length


def copy_range(header: str, size: int) -> tuple[int, int]:
    """(first byte, number of bytes) of the source of UploadPartCopy: both ends given and there. ``InvalidInput``."""
    found = _RANGE.fullmatch(header)
    if found is None or not found[1] or not found[2] or not int(found[1]) <= int(found[2]) < size:
        raise InvalidInput(f"the range of a copied part is bytes=FIRST-LAST within the {size} bytes of its source")
    return int(found[1]), int(found[2]) - int(found[1]) + 1


def part_range(sizes: Sequence[int], number: int) -> tuple[int, int]:
    """(first byte, number of bytes) of the part with this number, from 1. Raises ``RangeNotSatisfiable``."""
    if not 1 <= number <= len(sizes):
        raise RangeNotSatisfiable(f"there are {len(sizes)} parts, and no part {number}", size_bytes=sum(sizes))
    return sum(sizes[: number - 1]), sizes[number - 1]


# -- conditions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditions:
    """What a caller demands of an object. Entity tags as headers write them: quoted or bare, a list, or ``*``.

    Times are seconds since the epoch.
    """

    match: str | None = None
    none_match: str | None = None
    modified_since: float | None = None
    unmodified_since: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is demanded."""
        return self != Conditions()


def _names(tags: str, etag: str) -> bool:
    listed = {tag.strip().removeprefix("W/").strip('"') for tag in tags.split(",")}
    return "*" in listed or etag in listed


def is_unmodified(wanted: Conditions, etag: str, modified_at: float) -> bool:
    """Whether a reader has what is there already (304). Raises ``PreconditionFailed`` (412). RFC 9110, 13.2.2."""
    if wanted.match is not None:
        if not _names(wanted.match, etag):
            raise PreconditionFailed("the object's entity tag is not among those of If-Match", condition="If-Match")
    elif wanted.unmodified_since is not None and int(modified_at) > wanted.unmodified_since:
        raise PreconditionFailed("the object was changed after that time", condition="If-Unmodified-Since")
    if wanted.none_match is not None:
        return _names(wanted.none_match, etag)
    return wanted.modified_since is not None and int(modified_at) <= wanted.modified_since


def check_source(wanted: Conditions, etag: str, modified_at: float) -> None:
    """Whether an object may be copied: what would be 304 for a reader is 412, too. Raises ``PreconditionFailed``."""
    if is_unmodified(wanted, etag, modified_at):
        raise PreconditionFailed("the object that is copied does not meet the condition", condition="copy source")


def check_write(wanted: Conditions, etag: str | None) -> None:
    """Whether an object may be written where one with ``etag``, or none (None), is.

    Raises ``PreconditionFailed``, and ``NotFound`` when an object is demanded and there is none.
    """
    if wanted.match is not None:
        if etag is None:
            raise NotFound("there is no object whose entity tag could match", missing="object")
        if not _names(wanted.match, etag):
            raise PreconditionFailed("the object's entity tag is not among those of If-Match", condition="If-Match")
    if wanted.none_match is not None and etag is not None and _names(wanted.none_match, etag):
        raise PreconditionFailed("there is an object by that key already", condition="If-None-Match")


def etag_of_parts(digests: Sequence[str]) -> str:
    """The entity tag of an object made of parts: the MD5 of the parts' MD5s (hexadecimal), and how many they were."""
    joined = b"".join(bytes.fromhex(digest) for digest in digests)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(digests)}"
