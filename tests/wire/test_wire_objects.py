"""Objects by boto3: what it puts is what the native API and the files of the installation hold."""

import hashlib
import http.client
import io
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

Client = Callable[..., Any]
PART = 5 << 20
KEYS = ["../x", "a/../../b", "/slash", "c\nd\re", "ключ/路径/😀", "x" * 1024, "a b+c%2Fd?e#f&g=h", "~/.$'()*!;:@,"]


@pytest.fixture(scope="module")
def s3(client: Client) -> Any:
    return client("s3")


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    name = f"b-{hashlib.sha256(request.node.name.encode()).hexdigest()[:20]}"
    s3.create_bucket(Bucket=name)
    return name


def native(platform: Platform, bucket: str, key: str) -> dict[str, Any]:
    """An object as loopline's own API shows it."""
    shown: dict[str, Any] = platform.call("GET", f"/api/buckets/{bucket}/object?key={quote(key, safe='')}")
    return shown


def stored(platform: Platform, bucket: str, key: str) -> bytes:
    """An object's bytes as they lie on the disk."""
    digest = native(platform, bucket, key)["digest"]
    return (platform.folder / "blobs" / digest[:2] / digest).read_bytes()


def refused(call: Callable[..., Any], **given: Any) -> tuple[str, int]:
    """The code and the status of a call that fails."""
    with pytest.raises(ClientError) as caught:
        call(**given)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


# -- buckets ----------------------------------------------------------------------------------------------------------


def test_the_bucket_that_the_sagemaker_sdk_makes_for_itself(s3: Any, platform: Platform) -> None:
    name = "sagemaker-us-east-1-123456789012"
    assert refused(s3.head_bucket, Bucket=name, ExpectedBucketOwner="123456789012") == ("404", 404)
    s3.create_bucket(Bucket=name)
    s3.create_bucket(Bucket=name)  # as us-east-1 allows
    s3.head_bucket(Bucket=name, ExpectedBucketOwner="123456789012")
    assert refused(s3.head_bucket, Bucket=name, ExpectedBucketOwner="999999999999") == ("403", 403)
    assert name in [row["name"] for row in platform.call("GET", "/api/buckets")["items"]]
    assert name in [row["Name"] for row in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] is None
    s3.delete_bucket(Bucket=name)
    assert refused(s3.get_bucket_location, Bucket=name) == ("NoSuchBucket", 404)


def test_buckets_elsewhere_and_what_they_do_not_have(s3: Any, platform: Platform) -> None:
    s3.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert s3.get_bucket_location(Bucket="elsewhere")["LocationConstraint"] == "eu-west-1"
    assert s3.head_bucket(Bucket="elsewhere")["BucketRegion"] == "eu-west-1"
    again = {"Bucket": "elsewhere", "CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    assert refused(s3.create_bucket, **again) == ("BucketAlreadyOwnedByYou", 409)
    assert refused(s3.create_bucket, Bucket="xn--reserved") == ("InvalidBucketName", 400)
    assert refused(s3.get_bucket_policy, Bucket="elsewhere") == ("NoSuchBucketPolicy", 404)
    assert refused(s3.get_public_access_block, Bucket="elsewhere")[1] == 404
    assert "Status" not in s3.get_bucket_versioning(Bucket="elsewhere")
    assert s3.get_bucket_acl(Bucket="elsewhere")["Grants"][0]["Permission"] == "FULL_CONTROL"
    s3.put_bucket_tagging(Bucket="elsewhere", Tagging={"TagSet": [{"Key": "team", "Value": "ml"}]})
    assert s3.get_bucket_tagging(Bucket="elsewhere")["TagSet"] == [{"Key": "team", "Value": "ml"}]
    native = platform.call("GET", "/api/buckets/elsewhere")
    assert (native["region"], native["tags"]) == ("eu-west-1", {"team": "ml"})
    s3.delete_bucket_tagging(Bucket="elsewhere")
    assert platform.call("GET", "/api/buckets/elsewhere")["tags"] is None
    assert refused(s3.get_bucket_tagging, Bucket="elsewhere") == ("NoSuchTagSet", 404)


NEVER = {
    "get_bucket_cors": "NoSuchCORSConfiguration",
    "get_bucket_encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "get_bucket_lifecycle_configuration": "NoSuchLifecycleConfiguration",
    "get_bucket_ownership_controls": "OwnershipControlsNotFoundError",
    "get_bucket_policy_status": "NoSuchBucketPolicy",
    "get_bucket_replication": "ReplicationConfigurationNotFoundError",
    "get_bucket_website": "NoSuchWebsiteConfiguration",
    "get_object_lock_configuration": "ObjectLockConfigurationNotFoundError",
}


def test_what_a_bucket_never_has_is_said_in_the_words_of_s3(s3: Any, bucket: str) -> None:
    asked = (
        s3.get_bucket_cors,
        s3.get_bucket_encryption,
        s3.get_bucket_lifecycle_configuration,
        s3.get_bucket_ownership_controls,
        s3.get_bucket_policy_status,
        s3.get_bucket_replication,
        s3.get_bucket_website,
        s3.get_object_lock_configuration,
    )
    assert {call.__name__: refused(call, Bucket=bucket)[0] for call in asked} == NEVER
    assert {refused(call, Bucket="no-such-bucket")[0] for call in asked} == {"NoSuchBucket"}
    for call in (s3.get_bucket_accelerate_configuration, s3.get_bucket_logging):
        assert call(Bucket=bucket).keys() == {"ResponseMetadata"}


# -- objects ----------------------------------------------------------------------------------------------------------


def test_what_is_put_is_on_the_disk_and_comes_back(s3: Any, platform: Platform, bucket: str) -> None:
    data = bytes(range(256)) * 20
    put = s3.put_object(
        Bucket=bucket,
        Key="a/b.bin",
        Body=data,
        ContentType="application/x-own",
        CacheControl="max-age=5",
        ContentEncoding="own",
        Expires="Fri, 21 Nov 2036 00:00:00 GMT",
        Metadata={"Who": "me", "note": "x y"},
        Tagging="a=1&b=%26",
    )
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert put["ChecksumCRC32"]
    assert stored(platform, bucket, "a/b.bin") == data
    shown = native(platform, bucket, "a/b.bin")
    assert (shown["size_bytes"], shown["content_type"]) == (len(data), "application/x-own")
    got = s3.get_object(Bucket=bucket, Key="a/b.bin")
    assert got["Body"].read() == data
    assert got["Metadata"] == {"who": "me", "note": "x y"}
    assert (got["ContentType"], got["CacheControl"], got["ContentEncoding"]) == (
        "application/x-own",
        "max-age=5",
        "own",
    )
    head = s3.head_object(Bucket=bucket, Key="a/b.bin", ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["ETag"]) == (len(data), put["ETag"])
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (put["ChecksumCRC32"], "FULL_OBJECT")
    assert got["ExpiresString"] == "Fri, 21 Nov 2036 00:00:00 GMT"
    assert got["TagCount"] == 2
    tags = s3.get_object_tagging(Bucket=bucket, Key="a/b.bin")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "&"}]
    attributes = s3.get_object_attributes(Bucket=bucket, Key="a/b.bin", ObjectAttributes=["ETag", "ObjectSize"])
    assert (attributes["ETag"], attributes["ObjectSize"]) == (put["ETag"].strip('"'), len(data))
    s3.delete_object(Bucket=bucket, Key="a/b.bin")
    assert refused(s3.get_object, Bucket=bucket, Key="a/b.bin") == ("NoSuchKey", 404)
    assert refused(s3.head_object, Bucket=bucket, Key="a/b.bin") == ("404", 404)
    assert platform.ask("GET", f"/api/buckets/{bucket}/object?key=a/b.bin").status == 404


def test_an_empty_object_and_one_of_unknown_length(s3: Any, platform: Platform, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="empty")
    assert s3.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    assert refused(s3.get_object, Bucket=bucket, Key="empty", Range="bytes=0-") == ("InvalidRange", 416)
    s3.upload_fileobj(io.BytesIO(b"from a file"), bucket, "file")
    assert stored(platform, bucket, "file") == b"from a file"


@pytest.mark.parametrize("called", KEYS, ids=range(len(KEYS)))
def test_any_key_is_a_name_and_no_path(s3: Any, platform: Platform, bucket: str, called: str) -> None:
    key = called
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=bucket, EncodingType="url")["Contents"]]
    assert native(platform, bucket, key)["key"] == key
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}, {"Key": "copy"}]})
    assert [row["Key"] for row in deleted["Deleted"]] == [key, "copy"]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    s3.delete_bucket(Bucket=bucket)
    assert not any(path.name in {"x", "b", "slash"} for path in platform.folder.parent.rglob("*"))


def test_a_key_that_is_too_long(s3: Any, bucket: str) -> None:
    assert refused(s3.put_object, Bucket=bucket, Key="x" * 1025) == ("KeyTooLongError", 400)


def test_ranges_and_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")["ETag"]
    got = s3.get_object(Bucket=bucket, Key="k", Range="bytes=2-4")
    assert (got["Body"].read(), got["ContentRange"], got["ContentLength"]) == (b"234", "bytes 2-4/10", 3)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert s3.get_object(Bucket=bucket, Key="k", Range="bytes=-3")["Body"].read() == b"789"
    assert refused(s3.get_object, Bucket=bucket, Key="k", Range="bytes=10-") == ("InvalidRange", 416)
    assert s3.head_object(Bucket=bucket, Key="k", Range="bytes=0-0")["ContentLength"] == 1
    assert s3.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"0123456789"
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfMatch='"x"') == ("PreconditionFailed", 412)
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag) == ("304", 304)
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    assert refused(s3.get_object, Bucket=bucket, Key="k", IfModifiedSince=modified) == ("304", 304)
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"", IfNoneMatch="*") == ("PreconditionFailed", 412)
    s3.put_object(Bucket=bucket, Key="k", Body=b"new", IfMatch=etag)
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"", IfMatch=etag) == ("PreconditionFailed", 412)
    assert refused(s3.put_object, Bucket=bucket, Key="none", Body=b"", IfMatch=etag) == ("NoSuchKey", 404)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"


def test_of_many_who_write_where_nothing_is_one_wins(s3: Any, platform: Platform, bucket: str) -> None:
    def put(number: int) -> bool:
        try:
            s3.put_object(Bucket=bucket, Key="lock", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "PreconditionFailed"
            return False
        return True

    with ThreadPoolExecutor(8) as several:
        won = list(several.map(put, range(8)))
    assert won.count(True) == 1
    assert stored(platform, bucket, "lock") == str(won.index(True)).encode()


def test_copies(s3: Any, platform: Platform, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"abc", ContentType="text/plain", Metadata={"a": "1"})
    source = {"Bucket": bucket, "Key": "k"}
    done = s3.copy_object(Bucket=bucket, Key="same", CopySource=source)
    assert done["CopyObjectResult"]["ETag"] == s3.head_object(Bucket=bucket, Key="k")["ETag"]
    assert s3.head_object(Bucket=bucket, Key="same")["Metadata"] == {"a": "1"}
    replaced = {"Metadata": {"b": "2"}, "ContentType": "text/csv", "MetadataDirective": "REPLACE"}
    s3.copy_object(Bucket=bucket, Key="k", CopySource=source, **replaced)
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["Metadata"], head["ContentType"]) == ({"b": "2"}, "text/csv")
    assert native(platform, bucket, "k")["digest"] == native(platform, bucket, "same")["digest"]
    assert refused(s3.copy_object, Bucket=bucket, Key="k", CopySource=source) == ("InvalidRequest", 400)
    nothing = {"Bucket": bucket, "Key": "nothing"}
    assert refused(s3.copy_object, Bucket=bucket, Key="z", CopySource=nothing) == ("NoSuchKey", 404)
    s3.copy(source, bucket, "managed")
    assert stored(platform, bucket, "managed") == b"abc"


def test_tags_of_an_object_and_who_may(s3: Any, platform: Platform, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"abc", Tagging="stage=raw")
    tags = [{"Key": "stage", "Value": "clean"}, {"Key": "owner", "Value": "ml & co"}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": tags})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags
    assert native(platform, bucket, "k")["tags"] == {"stage": "clean", "owner": "ml & co"}
    twice = {"TagSet": [tags[0], tags[0]]}
    assert refused(s3.put_object_tagging, Bucket=bucket, Key="k", Tagging=twice) == ("InvalidTag", 400)
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert native(platform, bucket, "k")["tags"] is None
    (grant,) = s3.get_object_acl(Bucket=bucket, Key="k")["Grants"]
    assert (grant["Permission"], grant["Grantee"]["ID"]) == ("FULL_CONTROL", s3.list_buckets()["Owner"]["ID"])
    assert refused(s3.get_object_acl, Bucket=bucket, Key="nothing") == ("NoSuchKey", 404)


# -- checksums --------------------------------------------------------------------------------------------------------


def test_a_checksum_that_is_wrong_leaves_nothing(s3: Any, platform: Platform, bucket: str) -> None:
    for given in ({"ContentMD5": "A" * 22 + "=="}, {"ChecksumSHA256": "A" * 43 + "="}, {"ChecksumCRC32C": "AAAAAA=="}):
        assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"abc", **given) == ("BadDigest", 400)
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"abc", ContentMD5="x") == ("InvalidDigest", 400)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert platform.call("GET", f"/api/buckets/{bucket}/objects")["items"] == []


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA1", "SHA256"])
def test_checksums_come_back(s3: Any, bucket: str, algorithm: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"abc", ChecksumAlgorithm=algorithm)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"abc"
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert (listed["ChecksumAlgorithm"], listed["ChecksumType"]) == ([algorithm], "FULL_OBJECT")


# -- versions ---------------------------------------------------------------------------------------------------------


def test_versions(s3: Any, platform: Platform, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    one, two = (s3.put_object(Bucket=bucket, Key="k", Body=data)["VersionId"] for data in (b"one", b"two"))
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=one)["Body"].read() == b"one"
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    assert refused(s3.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    place = {"Bucket": bucket, "Key": "k", "VersionId": marker["VersionId"]}
    assert refused(s3.get_object, **place) == ("MethodNotAllowed", 405)
    with pytest.raises(ClientError) as caught:
        s3.head_object(Bucket=bucket, Key="k")
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert (headers["x-amz-delete-marker"], headers["x-amz-version-id"]) == ("true", marker["VersionId"])
    assert refused(s3.get_object, **{**place, "VersionId": "other"}) == ("NoSuchVersion", 404)
    listed = s3.list_object_versions(Bucket=bucket)
    assert [(row["VersionId"], row["IsLatest"]) for row in listed["Versions"]] == [(two, False), (one, False)]
    assert [(row["VersionId"], row["IsLatest"]) for row in listed["DeleteMarkers"]] == [(marker["VersionId"], True)]
    assert refused(s3.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)
    s3.delete_object(**place)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"two"
    back = s3.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "k", "VersionId": one})
    assert back["CopySourceVersionId"] == one
    assert stored(platform, bucket, "k") == b"one"
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    found = [row["VersionId"] for page in pages for row in page["Versions"]]
    assert found == [back["VersionId"], two, one]
    gone = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": each} for each in found], "Quiet": True}
    )
    assert "Deleted" not in gone
    s3.put_object(Bucket=bucket, Key="kept")
    some = [{"Key": "kept", "ETag": '"other"'}, {"Key": "x" * 1025}, {"Key": "never there"}]
    told = s3.delete_objects(Bucket=bucket, Delete={"Objects": some})
    assert [row["Code"] for row in told["Errors"]] == ["PreconditionFailed", "KeyTooLongError"]
    assert told["Deleted"][0]["DeleteMarker"] is True  # as S3 does: there is a mark now
    assert s3.head_object(Bucket=bucket, Key="kept")["ContentLength"] == 0


# -- lists ------------------------------------------------------------------------------------------------------------


def test_lists_and_paginators(s3: Any, platform: Platform, bucket: str) -> None:
    keys = sorted([f"data/{number:03}.csv" for number in range(23)] + ["data/sub/x", "readme", "zz/1", "zz/2"])
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    for operation, entry in (("list_objects", "Contents"), ("list_objects_v2", "Contents")):
        pages = s3.get_paginator(operation).paginate(Bucket=bucket, PaginationConfig={"PageSize": 5})
        assert [row["Key"] for page in pages for row in page[entry]] == keys
        pages = s3.get_paginator(operation).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1})
        found = [(page.get("Contents", []), page.get("CommonPrefixes", [])) for page in pages]
        assert [row["Key"] for contents, _ in found for row in contents] == ["readme"]
        assert [each["Prefix"] for _, prefixes in found for each in prefixes] == ["data/", "zz/"]
    one = s3.list_objects_v2(Bucket=bucket, Prefix="data/", Delimiter="/", StartAfter="data/020.csv")
    assert [row["Key"] for row in one["Contents"]] == ["data/021.csv", "data/022.csv"]
    assert [each["Prefix"] for each in one["CommonPrefixes"]] == ["data/sub/"]
    old = s3.list_objects(Bucket=bucket, Prefix="data/", Delimiter="/", Marker="data/021.csv")
    assert [row["Key"] for row in old["Contents"]] == ["data/022.csv"] and old["Contents"][0]["Owner"]["ID"]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    assert refused(s3.list_objects_v2, Bucket=bucket, ContinuationToken="!") == ("InvalidArgument", 400)
    assert refused(s3.list_objects_v2, Bucket="no-such-bucket") == ("NoSuchBucket", 404)
    listed = platform.call("GET", f"/api/buckets/{bucket}/objects?delimiter=/")
    assert ([row["key"] for row in listed["items"]], listed["prefixes"]) == (["readme"], ["data/", "zz/"])
    said = platform.cli("objects", "list", f"s3://{bucket}/data/", "--limit", "3").stdout
    assert said.splitlines()[0].startswith("data/000.csv\t0\t")


# -- uploads in parts -------------------------------------------------------------------------------------------------


def test_upload_file_and_download_file_in_parts(s3: Any, platform: Platform, bucket: str, tmp_path: Path) -> None:
    data = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(13 << 15))
    (tmp_path / "up").write_bytes(data)
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
    s3.upload_file(str(tmp_path / "up"), bucket, "big", ExtraArgs={"Metadata": {"a": "b"}}, Config=config)
    parts = [hashlib.md5(data[start : start + PART]).digest() for start in range(0, len(data), PART)]
    head = s3.head_object(Bucket=bucket, Key="big", PartNumber=3)
    assert head["ETag"] == f'"{hashlib.md5(b"".join(parts)).hexdigest()}-{len(parts)}"'
    assert (head["PartsCount"], head["ContentLength"]) == (len(parts), len(data) - 2 * PART)
    assert native(platform, bucket, "big")["digest"] == hashlib.sha256(data).hexdigest()
    s3.download_file(bucket, "big", str(tmp_path / "down"), Config=config)
    assert (tmp_path / "down").read_bytes() == data
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copied", Config=config)
    assert native(platform, bucket, "copied")["digest"] == native(platform, bucket, "big")["digest"]
    assert s3.head_object(Bucket=bucket, Key="copied")["ETag"] == head["ETag"]
    assert not any((platform.folder / "uploads").iterdir())


def test_an_upload_in_parts_by_hand(s3: Any, platform: Platform, bucket: str) -> None:
    place = {"Bucket": bucket, "Key": "k"}
    upload = s3.create_multipart_upload(**place, ContentType="text/plain")["UploadId"]
    one = s3.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"x" * PART)
    two = s3.upload_part(**place, UploadId=upload, PartNumber=2, Body=b"y")
    assert [part["Size"] for part in s3.list_parts(**place, UploadId=upload)["Parts"]] == [PART, 1]
    assert [row["UploadId"] for row in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    assert refused(s3.get_object, **place) == ("NoSuchKey", 404)
    listed = [{"PartNumber": 1, "ETag": one["ETag"]}, {"PartNumber": 2, "ETag": two["ETag"]}]
    for code, parts in (
        ("InvalidPartOrder", listed[::-1]),
        ("InvalidPart", [{"PartNumber": 1, "ETag": '"x"'}]),
        ("MalformedXML", []),
    ):
        given = {**place, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        assert refused(s3.complete_multipart_upload, **given) == (code, 400)
    done = s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": listed})
    assert done["Location"].endswith(f"/{bucket}/k")
    assert stored(platform, bucket, "k") == b"x" * PART + b"y"
    assert s3.get_object(**place)["ContentType"] == "text/plain"
    gone = s3.create_multipart_upload(**place)["UploadId"]
    s3.abort_multipart_upload(**place, UploadId=gone)
    assert refused(s3.upload_part, **place, UploadId=gone, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)


def test_a_part_may_be_a_range_of_another_object(s3: Any, platform: Platform, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=b"0" * PART + b"the end")
    place = {"Bucket": bucket, "Key": "made"}
    upload = s3.create_multipart_upload(**place)["UploadId"]
    source, last = {"Bucket": bucket, "Key": "source"}, f"bytes={PART}-{PART + 6}"
    made = [
        s3.upload_part_copy(**place, UploadId=upload, PartNumber=number, CopySource=source, CopySourceRange=span)
        for number, span in ((1, f"bytes=0-{PART - 1}"), (2, last))
    ]
    beyond = {**place, "UploadId": upload, "PartNumber": 3, "CopySource": source, "CopySourceRange": "bytes=0-99999999"}
    assert refused(s3.upload_part_copy, **beyond)[1] in (400, 416)
    parts = [{"PartNumber": n + 1, "ETag": part["CopyPartResult"]["ETag"]} for n, part in enumerate(made)]
    s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    assert stored(platform, bucket, "made") == b"0" * PART + b"the end"
    assert native(platform, bucket, "made")["digest"] == native(platform, bucket, "source")["digest"]


# -- presigned addresses, and clients that break off ------------------------------------------------------------------


@pytest.mark.parametrize("version", ["s3v4", "the one that boto3 takes by itself"])
def test_presigned_addresses(client: Client, platform: Platform, bucket: str, version: str) -> None:
    signer = client("s3", signature_version="s3v4") if version == "s3v4" else client("s3")
    place = {"Bucket": bucket, "Key": "a b/ü"}
    typed = {**place, "ContentType": "text/plain"}
    address = signer.generate_presigned_url("put_object", Params=typed)
    put = urllib.request.Request(address, b"presigned", {"content-type": "text/plain"}, method="PUT")
    with urllib.request.urlopen(put) as answer:
        assert answer.status == 200
    assert stored(platform, bucket, "a b/ü") == b"presigned"
    said = {"ResponseContentDisposition": 'attachment; filename="x"', "ResponseContentType": "text/x-own"}
    with urllib.request.urlopen(signer.generate_presigned_url("get_object", Params={**place, **said})) as answer:
        assert answer.read() == b"presigned"
        assert answer.headers["content-disposition"] == 'attachment; filename="x"'
        assert answer.headers["content-type"] == "text/x-own"
    address = signer.generate_presigned_url("get_object", Params=place)
    for wrong in (address[:-4] + "0000", address.replace("a%20b", "other")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(wrong)
        assert caught.value.code == 403
    split = {**place, "ResponseContentType": "x\r\nset-cookie: a=b"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(signer.generate_presigned_url("get_object", Params=split))
    assert caught.value.code == 400


def test_a_client_that_breaks_off_leaves_nothing(s3: Any, client: Client, platform: Platform, bucket: str) -> None:
    signer = client("s3", signature_version="s3v4")
    address = urlsplit(signer.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "half"}))
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = {"Bucket": bucket, "Key": "parts", "UploadId": upload, "PartNumber": 1}
    other = urlsplit(signer.generate_presigned_url("upload_part", Params=part))
    blobs = {path.name for path in (platform.folder / "blobs").rglob("*")}

    def temporary() -> list[Path]:
        folders = (platform.folder / "blobs" / "tmp", platform.folder / "uploads")
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    for each in (address, other):
        head = f"PUT {each.path}?{each.query} HTTP/1.1\r\nHost: {platform.host}\r\nContent-Length: 9000000\r\n\r\n"
        with socket.create_connection((platform.host.rsplit(":", 1)[0], int(platform.host.rsplit(":", 1)[1]))) as link:
            link.sendall(head.encode() + b"x" * 3_000_000)
            until(temporary, "half of it is there")
        until(lambda: not temporary(), "nothing is left of it")
    assert {path.name for path in (platform.folder / "blobs").rglob("*")} == blobs
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="parts", UploadId=upload)


def test_a_request_without_a_signature_is_refused(platform: Platform, bucket: str) -> None:
    connection = http.client.HTTPConnection(platform.host, timeout=30)
    connection.request("GET", f"/{bucket}?list-type=2", headers={"amz-sdk-invocation-id": "x"})
    answer = connection.getresponse()
    assert answer.status == 403
    assert b"AccessDenied" in answer.read()
    connection.close()


def test_who_may_only_read_writes_nothing(platform: Platform, client: Client, bucket: str) -> None:
    made = platform.call("POST", "/api/access-keys", {"name": "reader", "role": "viewer"})
    reader = client("s3", made)
    assert reader.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert refused(reader.put_object, Bucket=bucket, Key="k", Body=b"abc") == ("AccessDenied", 403)


def test_objects_on_the_command_line(platform: Platform, s3: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"a,b\n1,2\n")
    said = platform.cli("objects", "put", str(tmp_path / "table.csv"), "s3://from-a-person/in/", "--make-bucket")
    assert (said.returncode, said.stdout) == (0, "s3://from-a-person/in/table.csv: 8 bytes\n"), said.stderr
    assert s3.get_object(Bucket="from-a-person", Key="in/table.csv")["Body"].read() == b"a,b\n1,2\n"
    s3.put_object(Bucket="from-a-person", Key="out", Body=b"from boto3")
    assert platform.cli("objects", "get", "s3://from-a-person/out").stdout == "from boto3"
    assert "from-a-person" in platform.cli("objects", "list").stdout
    assert platform.cli("objects", "list", "s3://from-a-person").stdout.splitlines()[0].startswith("in/\t")
    assert "digest" in platform.cli("objects", "show", "s3://from-a-person/out").stdout
    assert platform.cli("objects", "delete", "s3://from-a-person/out").returncode == 0
    assert refused(s3.get_object, Bucket="from-a-person", Key="out") == ("NoSuchKey", 404)
