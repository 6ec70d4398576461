"""Multipart uploads."""

from typing import Any
from urllib.parse import quote

from loopline.control import objects, uploads
from loopline.control.uploads import FULL, Part
from loopline.domain import objects as rules
from loopline.domain.checksums import ALGORITHMS, Checking
from loopline.errors import AwsError
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.s3 import terms

MAX_PAGE = 1000


def create_multipart_upload(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Begin an upload."""
    algorithm, kind = given.get("ChecksumAlgorithm"), given.get("ChecksumType")
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise AwsError("InvalidRequest", f"{algorithm} is not a checksum algorithm of loopline")
    if kind is not None and algorithm is None:
        raise AwsError("InvalidRequest", "x-amz-checksum-type needs x-amz-checksum-algorithm")
    row = uploads.begin(
        call.ctx,
        call.actor,
        bucket=given["Bucket"],
        key=given["Key"],
        described=objects.describe(**terms.described(call, given)),
        algorithm=algorithm,
        whole=None if kind is None else kind == FULL,
    )
    return {
        "Bucket": given["Bucket"],
        "Key": given["Key"],
        "UploadId": row["id"],
        "ChecksumAlgorithm": algorithm,
        "ChecksumType": row["options"]["type"],
    }


def _place(given: dict[str, Any]) -> dict[str, Any]:
    return {"bucket": given["Bucket"], "key": given["Key"], "upload": given["UploadId"]}


def upload_part(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """One part; it has the checksum that the upload was begun with."""
    upload = uploads.show(call.ctx, call.actor, **_place(given))
    algorithm = upload["options"]["algorithm"]
    checking = terms.checking(call, given if algorithm is None else {"ChecksumAlgorithm": algorithm, **given})
    body = given.get("Body") or b""
    part = uploads.put_part(
        call.ctx,
        call.actor,
        number=given["PartNumber"],
        data=[body] if isinstance(body, bytes) else body,
        checking=checking,
        **_place(given),
    )
    return {"ETag": terms.quoted(part["md5"]), **terms.checksums_told(part["checksums"], kind=False)}


def upload_part_copy(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A part whose bytes are a range of an object."""
    bucket, key, version = terms.copy_source(given["CopySource"])
    source = objects.show(call.ctx, call.actor, bucket=bucket, key=key, version=version)
    rules.check_source(terms.conditions(given, "CopySource"), source["etag"], source["created_at"])
    wanted = given.get("CopySourceRange")
    span = (0, source["size_bytes"]) if wanted is None else rules.copy_range(wanted, source["size_bytes"])
    upload = uploads.show(call.ctx, call.actor, **_place(given))
    algorithm = upload["options"]["algorithm"]
    part = uploads.put_part(
        call.ctx,
        call.actor,
        number=given["PartNumber"],
        data=objects.chunks(call.ctx, source["digest"], *span),
        checking=Checking(wanted=() if algorithm is None else (algorithm,)),
        **_place(given),
    )
    return {
        "CopyPartResult": {
            "ETag": terms.quoted(part["md5"]),
            "LastModified": part["created_at"],
            **terms.checksums_told(part["checksums"], kind=False),
        },
        "CopySourceVersionId": terms.version_told(source),
    }


def complete_multipart_upload(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Make one object of the parts."""
    listed = (given.get("MultipartUpload") or {}).get("Parts") or []
    parts = [Part(part["PartNumber"], part["ETag"], _checksums(part)) for part in listed]
    row = uploads.complete(
        call.ctx,
        call.actor,
        parts=parts,
        expected=_checksums(given),
        size_bytes=given.get("MpuObjectSize"),
        wanted=terms.conditions(given),
        **_place(given),
    )
    host = call.request_headers.get("host", "localhost")
    return {
        "Location": f"http://{host}/{given['Bucket']}/{quote(given['Key'])}",
        "Bucket": given["Bucket"],
        "Key": given["Key"],
        "ETag": terms.quoted(row["etag"]),
        "VersionId": terms.version_told(row),
        **terms.checksums_told(row["checksums"]),
    }


def _checksums(given: dict[str, Any]) -> dict[str, str]:
    return {name: given[f"Checksum{name}"] for name in ALGORITHMS if given.get(f"Checksum{name}")}


def abort_multipart_upload(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Give an upload up."""
    uploads.abort(call.ctx, call.actor, **_place(given))
    return {}


def list_parts(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The parts of an open upload."""
    limit = min(given.get("MaxParts") or MAX_PAGE, MAX_PAGE)
    after = given.get("PartNumberMarker") or 0
    row, parts, more = uploads.list_parts(call.ctx, call.actor, after=after, limit=limit, **_place(given))
    return {
        "Bucket": given["Bucket"],
        "Key": given["Key"],
        "UploadId": given["UploadId"],
        "PartNumberMarker": after,
        "NextPartNumberMarker": parts[-1]["number"] if parts else after,
        "MaxParts": limit,
        "IsTruncated": more,
        "Parts": [
            {
                "PartNumber": part["number"],
                "LastModified": part["created_at"],
                "ETag": terms.quoted(part["md5"]),
                "Size": part["size_bytes"],
                **terms.checksums_told(part["checksums"], kind=False),
            }
            for part in parts
        ],
        "Initiator": terms.owner(call),
        "Owner": terms.owner(call),
        "StorageClass": "STANDARD",
        "ChecksumAlgorithm": row["options"]["algorithm"],
        "ChecksumType": row["options"]["type"],
    }


def list_multipart_uploads(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The open uploads of a bucket."""
    encode = terms.encoder(given)
    limit = min(MAX_PAGE if given.get("MaxUploads") is None else given["MaxUploads"], MAX_PAGE)
    prefix, delimiter = given.get("Prefix") or "", given.get("Delimiter") or ""
    page = uploads.page(
        call.ctx,
        call.actor,
        bucket=given["Bucket"],
        prefix=prefix,
        delimiter=delimiter,
        after=given.get("KeyMarker"),
        after_upload=given.get("UploadIdMarker"),
        limit=limit,
    )
    return {
        "Bucket": given["Bucket"],
        "KeyMarker": encode(given.get("KeyMarker") or ""),
        "UploadIdMarker": given.get("UploadIdMarker") or "",
        "NextKeyMarker": encode(page.last),
        "NextUploadIdMarker": None if page.last_row is None else page.last_row["id"],
        "Prefix": encode(prefix),
        "Delimiter": encode(delimiter) or None,
        "EncodingType": given.get("EncodingType"),
        "MaxUploads": limit,
        "IsTruncated": page.last is not None,
        "Uploads": [
            {
                "UploadId": row["id"],
                "Key": encode(row["key"]),
                "Initiated": row["created_at"],
                "StorageClass": "STANDARD",
                "Owner": terms.owner(call),
                "Initiator": terms.owner(call),
                "ChecksumAlgorithm": row["options"]["algorithm"],
                "ChecksumType": row["options"]["type"],
            }
            for row in page.rows
        ],
        "CommonPrefixes": [{"Prefix": encode(each)} for each in page.prefixes],
    }
