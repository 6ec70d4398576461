"""Objects: put, get, head, copy, delete, and their tags."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from loopline.control import objects
from loopline.domain import objects as rules
from loopline.domain.objects import Conditions
from loopline.errors import AwsError, InvalidInput, LooplineError, NotFound
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.s3 import terms
from loopline.fronts.aws.s3.buckets import acl

MAX_DELETED = 1000
_RESPONSE_HEADERS = {
    "ResponseCacheControl": "cache-control",
    "ResponseContentDisposition": "content-disposition",
    "ResponseContentEncoding": "content-encoding",
    "ResponseContentLanguage": "content-language",
    "ResponseContentType": "content-type",
}


def put_object(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Store a body under a key; it is there when its checksums are right, or not at all."""
    checking = terms.checking(call, given)
    body = given.get("Body") or b""
    row = objects.put(
        call.ctx,
        call.actor,
        bucket=given["Bucket"],
        key=given["Key"],
        data=[body] if isinstance(body, bytes) else body,
        wanted=terms.conditions(given),
        checking=checking,
        **terms.described(call, given),
    )
    return {
        "ETag": terms.quoted(row["etag"]),
        "VersionId": terms.version_told(row),
        **terms.checksums_told(row["checksums"]),
    }


# -- reading ----------------------------------------------------------------------------------------------------------


def get_object(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The bytes of an object, of a range of it, or of one of its parts."""
    row = _find(call, given)
    result = _head(call, given, row)
    if call.status == 304:
        return result
    result["Body"] = objects.chunks(call.ctx, row["digest"], *_span(call, given, row))
    return result


def head_object(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What ``get_object`` says before the bytes."""
    return _head(call, given, _find(call, given))


def _find(call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    version = given.get("VersionId")
    try:
        return objects.show(call.ctx, call.actor, bucket=given["Bucket"], key=given["Key"], version=version)
    except NotFound as error:
        if version is None or "marker" not in error.details:
            raise
        call.headers.update({"x-amz-delete-marker": "true", "allow": "DELETE"})
        raise AwsError("MethodNotAllowed", "The specified method is not allowed against this resource.", 405) from None


def _span(call: Call, given: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[int, int]:
    """(first byte, number of bytes) that are asked for; the answer says so when that is not the whole."""
    number, wanted = given.get("PartNumber"), given.get("Range")
    if number is not None and wanted is not None:
        raise AwsError("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
    size = row["size_bytes"]
    part: tuple[int, int] | None
    if number is not None:
        part = rules.part_range([part["size_bytes"] for part in row["parts"] or [{"size_bytes": size}]], number)
    else:
        part = rules.byte_range(wanted, size)
    if part is None:
        return 0, size
    call.status = 206
    return part


def _head(call: Call, given: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ETag": terms.quoted(row["etag"]),
        "LastModified": int(row["created_at"]),
        "VersionId": terms.version_told(row),
    }
    if rules.is_unmodified(terms.conditions(given), row["etag"], row["created_at"]):
        call.status = 304
        return result
    first, length = _span(call, given, row)
    call.headers.update(row["headers"] or {})
    if call.status == 206:
        result["ContentRange"] = f"bytes {first}-{first + length - 1}/{row['size_bytes']}"
    elif given.get("ChecksumMode") == "ENABLED":
        result.update(terms.checksums_told(row["checksums"]))
    if row["parts"] and given.get("PartNumber") is not None:
        result["PartsCount"] = len(row["parts"])
    result.update(
        AcceptRanges="bytes",
        ContentLength=length,
        ContentType=row["content_type"],
        Metadata=row["metadata"] or {},
        TagCount=len(row["tags"]) if row["tags"] else None,
    )
    _override(call, given, result)
    return result


def _override(call: Call, given: Mapping[str, Any], result: dict[str, Any]) -> None:
    """What the request says the answer's headers shall be."""
    for member, header in _RESPONSE_HEADERS.items():
        value = given.get(member)
        if value is not None:
            if not value.isprintable():
                raise AwsError("InvalidArgument", f"the value for {header} holds control characters")
            if header == "content-type":
                result["ContentType"] = value
            else:
                call.headers[header] = value
    expires: datetime | None = given.get("ResponseExpires")
    if expires is not None:
        call.headers["expires"] = expires.strftime("%a, %d %b %Y %H:%M:%S GMT")


def get_object_attributes(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The named attributes of an object."""
    row = _find(call, given)
    wanted = set(given.get("ObjectAttributes") or ())
    if not wanted:
        names = call.request_headers.get("x-amz-object-attributes", "")
        wanted = {name.strip() for name in names.split(",")}
    found = {
        "ETag": row["etag"],
        "Checksum": terms.checksums_told(row["checksums"]) or None,
        "ObjectSize": row["size_bytes"],
        "StorageClass": "STANDARD",
        "ObjectParts": {"TotalPartsCount": len(row["parts"])} if row["parts"] else None,
    }
    answer = {name: value for name, value in found.items() if name in wanted}
    return {**answer, "LastModified": int(row["created_at"]), "VersionId": terms.version_told(row)}


def get_object_acl(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The access list of an object."""
    _find(call, given)
    return acl(call)


# -- copying ----------------------------------------------------------------------------------------------------------


def copy_object(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Another object's bytes under a key; the description is the other's or that of the request."""
    source = terms.copy_source(given["CopySource"])
    replace = _directive(given, "MetadataDirective") == "REPLACE"
    own_tags = _directive(given, "TaggingDirective") == "REPLACE"
    if source == (given["Bucket"], given["Key"], None) and not replace and not own_tags:
        raise AwsError(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    described = terms.described(call, given)
    tags = described.pop("tags") or {}
    try:
        row, copied = objects.copy(
            call.ctx,
            call.actor,
            source=source,
            bucket=given["Bucket"],
            key=given["Key"],
            replace=described if replace else None,
            tags=tags if own_tags else None,
            source_wanted=terms.conditions(given, "CopySource"),
            wanted=terms.conditions(given),
        )
    except InvalidInput as error:
        if "limit_bytes" in error.details:
            raise AwsError(
                "InvalidRequest",
                f"The specified copy source is larger than the maximum allowable size for a copy source: {error}",
            ) from None
        raise
    return {
        "CopyObjectResult": {
            "ETag": terms.quoted(row["etag"]),
            "LastModified": row["created_at"],
            **terms.checksums_told(row["checksums"]),
        },
        "CopySourceVersionId": terms.version_told(copied),
        "VersionId": terms.version_told(row),
    }


def _directive(given: Mapping[str, Any], member: str) -> str:
    value: str = given.get(member) or "COPY"
    if value not in ("COPY", "REPLACE"):
        raise AwsError("InvalidArgument", f"Unknown {member}: {value[:100]}")
    return value


# -- deleting ---------------------------------------------------------------------------------------------------------


def delete_object(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Delete a key, or one version of it for good."""
    if any(given.get(member) is not None for member in ("IfMatchLastModifiedTime", "IfMatchSize")):
        raise AwsError("NotImplemented", "conditions on a deletion's time and size are not supported by loopline", 501)
    done = objects.delete(
        call.ctx,
        call.actor,
        bucket=given["Bucket"],
        key=given["Key"],
        version=given.get("VersionId"),
        wanted=terms.conditions(given),
    )
    return {"VersionId": done["version"], "DeleteMarker": done["marker"] or None}


def delete_objects(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Delete up to a thousand keys; each stands for itself."""
    wanted = given.get("Delete") or {}
    keys = wanted.get("Objects") or []
    if not 1 <= len(keys) <= MAX_DELETED:
        raise AwsError("MalformedXML", f"between 1 and {MAX_DELETED} keys are deleted at once, not {len(keys)}")
    named = [(each.get("Key", ""), each.get("VersionId"), Conditions(match=each.get("ETag"))) for each in keys]
    deleted, errors = [], []
    done = objects.delete_many(call.ctx, call.actor, bucket=given["Bucket"], keys=named)
    for (key, version, _), one in zip(named, done, strict=True):
        if isinstance(one, LooplineError):
            said = terms.told(call, one)
            code = said.name if isinstance(said, AwsError) else "InternalError"
            errors.append({"Key": key, "VersionId": version, "Code": code, "Message": said.message})
        else:
            deleted.append(_deleted(key, version, one))
    return {"Deleted": None if wanted.get("Quiet") else deleted, "Errors": errors or None}


def _deleted(key: str, version: str | None, done: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Key": key,
        "VersionId": version,
        "DeleteMarker": done["marker"] or None,
        "DeleteMarkerVersionId": done["version"] if done["marker"] else None,
    }


# -- tags -------------------------------------------------------------------------------------------------------------


def get_object_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """An object's tags."""
    row = _find(call, given)
    return {"TagSet": terms.tags_told(row["tags"]), "VersionId": terms.version_told(row)}


def put_object_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Replace an object's tags."""
    return _tagged(call, given, terms.tag_set(given))


def delete_object_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove an object's tags."""
    return _tagged(call, given, {})


def _tagged(call: Call, given: Mapping[str, Any], tags: dict[str, str]) -> dict[str, Any]:
    place = {"bucket": given["Bucket"], "key": given["Key"], "version": given.get("VersionId")}
    return {"VersionId": terms.version_told(objects.set_tags(call.ctx, call.actor, tags=tags, **place))}
