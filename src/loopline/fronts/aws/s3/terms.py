"""S3's words: what members of requests mean to the use cases, what rows are called in answers, and errors' codes."""

import functools
import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from loopline.domain.checksums import ALGORITHMS, Checking
from loopline.domain.objects import UNVERSIONED, Conditions
from loopline.errors import (
    AwsError,
    Conflict,
    Corrupt,
    InvalidInput,
    LooplineError,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    TooLarge,
)
from loopline.fronts.aws.call import Call, Handler

_CHECKSUM_HEADER = "x-amz-checksum-"
_KEPT_HEADERS = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
_MISSING = {
    "bucket": ("NoSuchBucket", "The specified bucket does not exist"),
    "object": ("NoSuchKey", "The specified key does not exist."),
    "version": ("NoSuchVersion", "The specified version does not exist."),
    "upload": (
        "NoSuchUpload",
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or "
        "completed.",
    ),
}
_INVALID = {
    "bucket_name": ("InvalidBucketName", None),
    "key_length": ("KeyTooLongError", "Your key is too long"),
    "metadata": ("MetadataTooLarge", None),
    "tags": ("InvalidTag", None),
    "part": ("InvalidPart", None),
    "part_number": ("InvalidArgument", None),
    "part_order": ("InvalidPartOrder", None),
    "part_size": ("EntityTooSmall", None),
    "no_parts": ("MalformedXML", None),
    "mismatch": ("BadDigest", None),
    "checksum_type": ("InvalidRequest", None),
    "size": ("InvalidRequest", None),
}
# What of a request loopline takes and does nothing about; each is told to the caller as a warning.
_IGNORED = {
    "ServerSideEncryption": "objects are not encrypted by loopline: put DIR on an encrypted disk",
    "SSEKMSKeyId": "objects are not encrypted by loopline: put DIR on an encrypted disk",
    "ACL": "access is decided by the roles of loopline's users, not by lists on objects",
    "StorageClass": "all objects are kept alike",
    "WebsiteRedirectLocation": "loopline serves no web sites",
}
_REFUSED = ("SSECustomerAlgorithm", "ObjectLockMode", "ObjectLockLegalHoldStatus", "WriteOffsetBytes", "MFA")
_AS_USUAL = {"ACL": ("private", "bucket-owner-full-control", "bucket-owner-read"), "StorageClass": ("STANDARD",)}


def in_terms(handler: Handler) -> Handler:
    """A handler whose errors have S3's codes, and which answers only for buckets of this account."""

    @functools.wraps(handler)
    def answer(call: Call, given: dict[str, Any]) -> dict[str, Any]:
        for member in ("ExpectedBucketOwner", "ExpectedSourceBucketOwner"):
            if given.get(member) not in (None, call.account):
                raise AwsError("AccessDenied", f"The bucket belongs to the account {call.account}", 403)
        for member in _REFUSED:
            if given.get(member) is not None:
                raise AwsError("NotImplemented", f"{member} is not supported by loopline", 501)
        for member, why in _IGNORED.items():
            if given.get(member) is not None and given[member] not in _AS_USUAL.get(member, ()):
                call.warn(f"{member}={given[member]} has no effect: {why}")
        try:
            return handler(call, given)
        except AwsError:
            raise
        except LooplineError as error:
            raise told(call, error) from error

    return answer


def told(call: Call, error: LooplineError) -> LooplineError:
    """An error in S3's words; what S3 has no word for stays as it is."""
    details = error.details
    if isinstance(error, NotFound) and details.get("missing") in _MISSING:
        code, message = _MISSING[details["missing"]]
        if "marker" in details:
            call.headers.update({"x-amz-delete-marker": "true", "x-amz-version-id": details["marker"]})
        return AwsError(code, message, 404)
    if isinstance(error, PreconditionFailed):
        return AwsError("PreconditionFailed", "At least one of the pre-conditions you specified did not hold", 412)
    if isinstance(error, RangeNotSatisfiable):
        call.headers["content-range"] = f"bytes */{details.get('size_bytes', 0)}"
        return AwsError("InvalidRange", "The requested range is not satisfiable", 416)
    if isinstance(error, Conflict) and details.get("full"):
        return AwsError("BucketNotEmpty", error.message, 409)
    if isinstance(error, TooLarge):
        return AwsError("EntityTooLarge", error.message, 400)
    if isinstance(error, Corrupt):
        return AwsError("InternalError", error.message, 500)
    return _invalid(error) if isinstance(error, InvalidInput) else error


def _invalid(error: InvalidInput) -> AwsError:
    kind = error.details.get("kind")
    if kind == "digest":
        code = "InvalidDigest" if error.details["algorithm"] == "MD5" else "InvalidRequest"
        return AwsError(code, error.message, 400)
    code, message = _INVALID.get(str(kind), ("InvalidArgument", None))
    return AwsError(code, message or error.message, 400)


# -- what requests say ------------------------------------------------------------------------------------------------


def seconds(value: datetime | None) -> float | None:
    """A timestamp as seconds since the epoch."""
    return None if value is None else value.timestamp()


def conditions(given: Mapping[str, Any], prefix: str = "") -> Conditions:
    """The conditions of a request; ``prefix`` is CopySource for those on what is copied."""
    return Conditions(
        match=given.get(f"{prefix}IfMatch"),
        none_match=given.get(f"{prefix}IfNoneMatch"),
        modified_since=seconds(given.get(f"{prefix}IfModifiedSince")),
        unmodified_since=seconds(given.get(f"{prefix}IfUnmodifiedSince")),
    )


def described(call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    """How an object is described, as ``objects.describe`` takes it."""
    headers = {name: call.request_headers[name] for name in _KEPT_HEADERS if call.request_headers.get(name)}
    codings = [part.strip() for part in headers.pop("content-encoding", "").split(",")]
    kept = ",".join(part for part in codings if part and part.lower() != "aws-chunked")
    if kept:
        headers["content-encoding"] = kept
    return {
        "content_type": given.get("ContentType"),
        "headers": headers,
        "metadata": given.get("Metadata"),
        "tags": header_tags(given.get("Tagging")),
    }


def header_tags(text: str | None) -> dict[str, str] | None:
    """Tags as a header has them: ``a=1&b=2``; raises ``AwsError`` for one that stands twice."""
    if text is None:
        return None
    pairs = parse_qsl(text, keep_blank_values=True)
    if len(dict(pairs)) != len(pairs):
        raise AwsError("InvalidTag", "There are duplicate tag names in your request", 400)
    return dict(pairs)


def tag_set(given: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a ``Tagging`` body; raises ``AwsError`` for one that stands twice."""
    listed = (given.get("Tagging") or {}).get("TagSet") or []
    tags = {tag["Key"]: tag["Value"] for tag in listed}
    if len(tags) != len(listed):
        raise AwsError("InvalidTag", "Cannot provide multiple Tags with the same key", 400)
    return tags


def tags_told(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    """Tags as answers list them."""
    return [{"Key": name, "Value": value} for name, value in (tags or {}).items()]


def checking(call: Call, given: Mapping[str, Any]) -> Checking:
    """What the bytes of a body are checked against: headers now, trailers when the body has been read."""
    expected = {name: given[f"Checksum{name}"] for name in ALGORITHMS if given.get(f"Checksum{name}")}
    announced = {part.strip().lower() for part in call.request_headers.get("x-amz-trailer", "").split(",")}
    trailing = {name for name in ALGORITHMS if f"{_CHECKSUM_HEADER}{name.lower()}" in announced}
    wanted = {*trailing, *_algorithm(given.get("ChecksumAlgorithm"))}
    unknown = [name for name in (*announced, *call.request_headers) if _is_foreign(name)]
    if unknown:
        raise AwsError("NotImplemented", f"{unknown[0]} is not a checksum that loopline computes", 501)

    def later() -> dict[str, str]:
        found = {name: call.trailers.get(f"{_CHECKSUM_HEADER}{name.lower()}", "") for name in trailing}
        return {name: value.strip() for name, value in found.items()}

    return Checking(expected, later, wanted, content_md5=given.get("ContentMD5"))


def _is_foreign(name: str) -> bool:
    rest = name.removeprefix(_CHECKSUM_HEADER)
    return rest != name and rest.upper() not in (*ALGORITHMS, "ALGORITHM", "TYPE", "MODE")


def _algorithm(name: str | None) -> tuple[str, ...]:
    if name is not None and name not in ALGORITHMS:
        raise AwsError("InvalidRequest", f"{name} is not a checksum algorithm of loopline: {', '.join(ALGORITHMS)}")
    return () if name is None else (name,)


def copy_source(text: str) -> tuple[str, str, str | None]:
    """(bucket, key, version) of ``/bucket/key?versionId=...``, percent-encoded; raises ``AwsError``."""
    path, _, query = text.partition("?versionId=")
    bucket, slash, key = unquote(path).removeprefix("/").partition("/")
    if not slash or not key or bucket.startswith("arn:"):
        raise AwsError("InvalidArgument", f"Copy Source must mention the source bucket and key, not {text[:200]!r}")
    return bucket, key, unquote(query) or None


# -- what answers say -------------------------------------------------------------------------------------------------


def quoted(etag: str) -> str:
    """An entity tag as headers and bodies have it."""
    return f'"{etag}"'


def version_told(row: Mapping[str, Any], versioned: bool = False) -> str | None:
    """A version's id; None where the bucket never kept versions."""
    version: str = row["version"]
    return version if versioned or version != UNVERSIONED else None


def checksums_told(checksums: Mapping[str, str] | None, *, kind: bool = True) -> dict[str, str]:
    """Checksums as members of an answer; ``kind``: with that of the checksum."""
    found = {f"Checksum{name}": value for name, value in (checksums or {}).items() if name != "type"}
    if kind and checksums:
        found["ChecksumType"] = checksums["type"]
    return found


def algorithms(checksums: Mapping[str, str] | None) -> list[str] | None:
    """Which checksums an object has."""
    return [name for name in checksums if name != "type"] if checksums else None


def owner(call: Call) -> dict[str, str]:
    """Who owns everything: the account. The id is as long as AWS's."""
    return {"DisplayName": "loopline", "ID": hashlib.sha256(call.account.encode()).hexdigest()}


def encoder(given: Mapping[str, Any]) -> Any:
    """How keys stand in a list: as they are, or percent-encoded where the client asks for it."""
    kind = given.get("EncodingType")
    if kind not in (None, "url"):
        raise AwsError("InvalidArgument", "Invalid Encoding Method specified in Request")

    def encode(text: str | None) -> str | None:
        return text if text is None or kind is None else quote(text, safe="/")

    return encode
