"""Objects while control is killed: what was there stays, what was half there never appears, uploads go on."""

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

Client = Callable[..., Any]
BUCKET = "killed"
PART = b"0123456789abcdef" * (5 << 16)  # 5 MiB


def test_a_kill_in_the_middle_of_an_object_and_between_parts(platform: Platform, client: Client) -> None:
    s3, signer = client("s3"), client("s3", signature_version="s3v4")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="k", Body=b"before")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
    place = {"Bucket": BUCKET, "Key": "parts", "UploadId": upload}
    one = s3.upload_part(**place, PartNumber=1, Body=PART)

    address = urlsplit(signer.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k"}))
    host, _, port = platform.host.rpartition(":")
    head = f"PUT {address.path}?{address.query} HTTP/1.1\r\nHost: {platform.host}\r\nContent-Length: 9000000\r\n\r\n"
    with socket.create_connection((host, int(port))) as link:
        link.sendall(head.encode() + b"x" * 3_000_000)
        temporary = platform.folder / "blobs" / "tmp"
        until(lambda: list(temporary.iterdir()), "half of it is there")
        platform.kill("control")

    assert s3.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"before"
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["k"]
    two = s3.upload_part(**place, PartNumber=2, Body=b"the end")
    listed = [{"PartNumber": 1, "ETag": one["ETag"]}, {"PartNumber": 2, "ETag": two["ETag"]}]

    def completed() -> bool:
        """Complete the upload; a client that hears no answer asks again."""
        try:
            s3.complete_multipart_upload(**place, MultipartUpload={"Parts": listed})
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500, error
            return False
        return True

    assert completed()
    platform.kill("control")
    assert completed()
    assert s3.get_object(Bucket=BUCKET, Key="parts")["Body"].read() == PART + b"the end"
