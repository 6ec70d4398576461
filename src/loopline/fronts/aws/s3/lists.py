"""Lists of a bucket's objects and versions."""

import base64
from collections.abc import Mapping
from typing import Any

from loopline.control import objects
from loopline.domain.listings import Page
from loopline.errors import AwsError
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.s3 import terms

MAX_KEYS = 1000


def _asked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Bucket, prefix, delimiter and how many."""
    limit = given.get("MaxKeys")
    if limit is not None and limit < 0:
        raise AwsError("InvalidArgument", "Argument maxKeys must be an integer between 0 and 2147483647")
    return {
        "bucket": given["Bucket"],
        "prefix": given.get("Prefix") or "",
        "delimiter": given.get("Delimiter") or "",
        "limit": MAX_KEYS if limit is None else min(limit, MAX_KEYS),
    }


def _told(given: Mapping[str, Any], asked: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """What all lists say."""
    encode = terms.encoder(given)
    return {
        "Name": asked["bucket"],
        "Prefix": encode(asked["prefix"]),
        "Delimiter": encode(asked["delimiter"]) or None,
        "MaxKeys": asked["limit"],
        "EncodingType": given.get("EncodingType"),
        "IsTruncated": page.last is not None,
        "CommonPrefixes": [{"Prefix": encode(each)} for each in page.prefixes],
    }


def _contents(call: Call, given: Mapping[str, Any], page: Page, *, owned: bool) -> list[dict[str, Any]]:
    encode, owner = terms.encoder(given), terms.owner(call) if owned else None
    return [
        {
            "Key": encode(row["key"]),
            "LastModified": row["created_at"],
            "ETag": terms.quoted(row["etag"]),
            "ChecksumAlgorithm": terms.algorithms(row["checksums"]),
            "ChecksumType": (row["checksums"] or {}).get("type"),
            "Size": row["size_bytes"],
            "StorageClass": "STANDARD",
            "Owner": owner,
        }
        for row in page.rows
    ]


def list_objects(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Objects, by the first version of the call: a page begins behind ``Marker``."""
    asked, encode = _asked(given), terms.encoder(given)
    page = objects.page(call.ctx, call.actor, after=given.get("Marker") or None, **asked)
    return {
        **_told(given, asked, page),
        "Marker": encode(given.get("Marker") or ""),
        "NextMarker": encode(page.last) if asked["delimiter"] else None,
        "Contents": _contents(call, given, page, owned=True),
    }


def list_objects_v2(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Objects: a page begins behind ``StartAfter``, or where the continuation token says."""
    asked, encode = _asked(given), terms.encoder(given)
    token, start = given.get("ContinuationToken"), given.get("StartAfter")
    after = _untoken(token) if token is not None else start or None
    page = objects.page(call.ctx, call.actor, after=after, **asked)
    return {
        **_told(given, asked, page),
        "KeyCount": len(page.rows) + len(page.prefixes),
        "ContinuationToken": token,
        "NextContinuationToken": None if page.last is None else _token(page.last),
        "StartAfter": encode(start),
        "Contents": _contents(call, given, page, owned=bool(given.get("FetchOwner"))),
    }


def _token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _untoken(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise AwsError("InvalidArgument", "The continuation token provided is incorrect") from None


def list_object_versions(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """All versions and deletion marks, the newest of each key first."""
    asked, encode = _asked(given), terms.encoder(given)
    if given.get("VersionIdMarker") and not given.get("KeyMarker"):
        raise AwsError("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
    page = objects.page_versions(
        call.ctx,
        call.actor,
        after=given.get("KeyMarker") or None,
        after_version=given.get("VersionIdMarker"),
        **asked,
    )
    told: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in page.rows:
        told[row["marker"]].append(_version(call, row, encode(row["key"])))
    return {
        **_told(given, asked, page),
        "KeyMarker": encode(given.get("KeyMarker") or ""),
        "VersionIdMarker": given.get("VersionIdMarker") or "",
        "NextKeyMarker": encode(page.last),
        "NextVersionIdMarker": None if page.last_row is None else page.last_row["version"],
        "Versions": told[False],
        "DeleteMarkers": told[True],
    }


def _version(call: Call, row: Mapping[str, Any], key: str) -> dict[str, Any]:
    every = {
        "Key": key,
        "VersionId": row["version"],
        "IsLatest": row["current"],
        "LastModified": row["created_at"],
        "Owner": terms.owner(call),
    }
    if row["marker"]:
        return every
    return {
        **every,
        "ETag": terms.quoted(row["etag"]),
        "ChecksumAlgorithm": terms.algorithms(row["checksums"]),
        "ChecksumType": (row["checksums"] or {}).get("type"),
        "Size": row["size_bytes"],
        "StorageClass": "STANDARD",
    }
