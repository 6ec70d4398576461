"""Buckets, and what S3 keeps beside them."""

from typing import Any

from loopline.control import buckets
from loopline.errors import AwsError, Conflict
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.s3.terms import owner, tag_set, tags_told

DEFAULT_REGION = "us-east-1"  # whose name S3 leaves out of a bucket's location
MAX_BUCKETS = 10_000


def list_buckets(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """All buckets, or a page of them."""
    prefix, after = given.get("Prefix") or "", given.get("ContinuationToken") or ""
    rows = buckets.list_(call.ctx, call.actor)["items"]
    rows = [row for row in rows if row["name"].startswith(prefix) and row["name"] > after]
    limit = given.get("MaxBuckets") or MAX_BUCKETS
    return {
        "Buckets": [
            {"Name": row["name"], "CreationDate": row["created_at"], "BucketRegion": row["region"] or call.region}
            for row in rows[:limit]
        ],
        "Owner": owner(call),
        "Prefix": given.get("Prefix"),
        "ContinuationToken": rows[limit - 1]["name"] if len(rows) > limit else None,
    }


def create_bucket(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A bucket. One's own in us-east-1 may be made again, as there."""
    wanted = (given.get("CreateBucketConfiguration") or {}).get("LocationConstraint")
    if given.get("ObjectLockEnabledForBucket"):
        raise AwsError("NotImplemented", "object locks are not supported by loopline", 501)
    name = given["Bucket"]
    try:
        buckets.create(call.ctx, call.actor, bucket=name, region=wanted or call.region)
    except Conflict:
        if call.region != DEFAULT_REGION or wanted not in (None, DEFAULT_REGION):
            raise AwsError(
                "BucketAlreadyOwnedByYou",
                "Your previous request to create the named bucket succeeded and you already own it.",
                409,
            ) from None
    return {"Location": f"/{name}"}


def head_bucket(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Whether a bucket is there."""
    row = buckets.show(call.ctx, call.actor, bucket=given["Bucket"])
    return {"BucketRegion": row["region"] or call.region, "AccessPointAlias": False}


def delete_bucket(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove an empty bucket."""
    buckets.delete(call.ctx, call.actor, bucket=given["Bucket"])
    return {}


def get_bucket_location(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The region; nothing stands for us-east-1."""
    region = buckets.show(call.ctx, call.actor, bucket=given["Bucket"])["region"] or call.region
    return {"LocationConstraint": None if region == DEFAULT_REGION else region}


def get_bucket_versioning(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Enabled, Suspended, or nothing for a bucket that never kept versions."""
    return {"Status": buckets.show(call.ctx, call.actor, bucket=given["Bucket"])["versioning"]}


def put_bucket_versioning(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Keep versions from now on, or no new ones."""
    wanted = given.get("VersioningConfiguration") or {}
    if wanted.get("MFADelete") == "Enabled":
        raise AwsError("NotImplemented", "MFADelete is not supported by loopline", 501)
    if "Status" not in wanted:
        raise AwsError("IllegalVersioningConfigurationException", "The Versioning element must be specified")
    buckets.set_versioning(call.ctx, call.actor, bucket=given["Bucket"], versioning=wanted["Status"])
    return {}


def get_bucket_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """A bucket's tags."""
    tags = buckets.show(call.ctx, call.actor, bucket=given["Bucket"])["tags"]
    if not tags:
        raise AwsError("NoSuchTagSet", "The TagSet does not exist", 404)
    return {"TagSet": tags_told(tags)}


def put_bucket_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Replace a bucket's tags."""
    buckets.set_tags(call.ctx, call.actor, bucket=given["Bucket"], tags=tag_set(given))
    return {}


def delete_bucket_tagging(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove a bucket's tags."""
    buckets.set_tags(call.ctx, call.actor, bucket=given["Bucket"], tags=None)
    return {}


def get_bucket_acl(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The owner may do everything: what others may is decided by roles."""
    buckets.show(call.ctx, call.actor, bucket=given["Bucket"])
    return acl(call)


def acl(call: Call) -> dict[str, Any]:
    """The access list of anything."""
    return {
        "Owner": owner(call),
        "Grants": [{"Grantee": {**owner(call), "Type": "CanonicalUser"}, "Permission": "FULL_CONTROL"}],
    }


# What a bucket of loopline never has, and how S3 says so.
_NEVER = {
    "GetBucketCors": ("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    "GetBucketEncryption": (
        "ServerSideEncryptionConfigurationNotFoundError",
        "The server side encryption configuration was not found",
    ),
    "GetBucketLifecycleConfiguration": (
        "NoSuchLifecycleConfiguration",
        "The lifecycle configuration does not exist",
    ),
    "GetBucketOwnershipControls": (
        "OwnershipControlsNotFoundError",
        "The bucket ownership controls were not found",
    ),
    "GetBucketPolicy": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketPolicyStatus": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketReplication": (
        "ReplicationConfigurationNotFoundError",
        "The replication configuration was not found",
    ),
    "GetBucketWebsite": ("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"),
    "GetObjectLockConfiguration": (
        "ObjectLockConfigurationNotFoundError",
        "Object Lock configuration does not exist for this bucket",
    ),
    "GetPublicAccessBlock": (
        "NoSuchPublicAccessBlockConfiguration",
        "The public access block configuration was not found",
    ),
}
# What a bucket of loopline has none of, where S3 answers with an empty list.
_NONE = (
    "GetBucketAccelerateConfiguration",
    "GetBucketLogging",
)
CONFIGURATIONS = (*_NEVER, *_NONE)


def get_configuration(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What S3 keeps beside a bucket and loopline has not: the answer that says so."""
    buckets.show(call.ctx, call.actor, bucket=given["Bucket"])
    if call.operation in _NEVER:
        code, message = _NEVER[call.operation]
        raise AwsError(code, message, 404)
    return {}
