"""S3: control's buckets, objects and uploads in the words of S3's API. It translates, and keeps nothing of its own."""

from loopline.domain.access import Permission
from loopline.fronts.aws.call import Handler, Operation
from loopline.fronts.aws.s3 import buckets, lists, notifications, objects, uploads
from loopline.fronts.aws.s3.terms import in_terms

READ, WRITE = Permission.READ, Permission.WRITE


def _operation(handler: Handler, permission: Permission, partly: str = "") -> Operation:
    return Operation(in_terms(handler), permission, partly)


_NO_ENCRYPTION = "encryption, access lists and storage classes are taken with a warning and have no effect"

OPERATIONS = {
    "ListBuckets": _operation(buckets.list_buckets, READ),
    "CreateBucket": _operation(buckets.create_bucket, WRITE, "no object locks"),
    "HeadBucket": _operation(buckets.head_bucket, READ),
    "DeleteBucket": _operation(buckets.delete_bucket, WRITE),
    "GetBucketLocation": _operation(buckets.get_bucket_location, READ),
    "GetBucketVersioning": _operation(buckets.get_bucket_versioning, READ),
    "PutBucketVersioning": _operation(buckets.put_bucket_versioning, WRITE, "no MFADelete"),
    "GetBucketTagging": _operation(buckets.get_bucket_tagging, READ),
    "PutBucketTagging": _operation(buckets.put_bucket_tagging, WRITE),
    "DeleteBucketTagging": _operation(buckets.delete_bucket_tagging, WRITE),
    "GetBucketAcl": _operation(buckets.get_bucket_acl, READ, "always the owner alone"),
    **{name: _operation(buckets.get_configuration, READ, "says that there is none") for name in buckets.CONFIGURATIONS},
    "GetBucketNotificationConfiguration": _operation(notifications.get_bucket_notification_configuration, READ),
    "PutBucketNotificationConfiguration": _operation(
        notifications.put_bucket_notification_configuration, WRITE, "topics only: no queues, functions or EventBridge"
    ),
    "PutObject": _operation(objects.put_object, WRITE, _NO_ENCRYPTION),
    "GetObject": _operation(objects.get_object, READ),
    "HeadObject": _operation(objects.head_object, READ),
    "GetObjectAttributes": _operation(objects.get_object_attributes, READ, "parts are counted, not listed"),
    "GetObjectAcl": _operation(objects.get_object_acl, READ, "always the owner alone"),
    "CopyObject": _operation(objects.copy_object, WRITE, _NO_ENCRYPTION),
    "DeleteObject": _operation(objects.delete_object, WRITE),
    "DeleteObjects": _operation(objects.delete_objects, WRITE),
    "GetObjectTagging": _operation(objects.get_object_tagging, READ),
    "PutObjectTagging": _operation(objects.put_object_tagging, WRITE),
    "DeleteObjectTagging": _operation(objects.delete_object_tagging, WRITE),
    "ListObjects": _operation(lists.list_objects, READ),
    "ListObjectsV2": _operation(lists.list_objects_v2, READ),
    "ListObjectVersions": _operation(lists.list_object_versions, READ),
    "CreateMultipartUpload": _operation(uploads.create_multipart_upload, WRITE, _NO_ENCRYPTION),
    "UploadPart": _operation(uploads.upload_part, WRITE),
    "UploadPartCopy": _operation(uploads.upload_part_copy, WRITE),
    "CompleteMultipartUpload": _operation(uploads.complete_multipart_upload, WRITE),
    "AbortMultipartUpload": _operation(uploads.abort_multipart_upload, WRITE),
    "ListParts": _operation(uploads.list_parts, READ),
    "ListMultipartUploads": _operation(uploads.list_multipart_uploads, READ),
}
