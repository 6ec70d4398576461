"""ARNs: the only place that makes them and reads them.

``arn:aws:SERVICE:REGION:ACCOUNT:RESOURCE``, for example ``arn:aws:sagemaker:us-east-1:123456789012:pipeline/churn``.
"""

import re
from typing import NamedTuple

from loopline.errors import AwsError

_NO_REGION = frozenset(("iam", "sts", "s3"))
_NO_ACCOUNT = frozenset(("s3",))
_ARN = re.compile(r"arn:aws[a-z-]*:([a-z0-9-]+):([a-z0-9-]*):([0-9]{12}|aws|):(.+)", re.S)


class Arn(NamedTuple):
    """The parts of one."""

    service: str
    region: str
    account: str
    resource: str

    @property
    def kind(self) -> str:
        """``model-package`` of ``model-package/churn/3``."""
        return re.split("[/:]", self.resource, maxsplit=1)[0]

    @property
    def name(self) -> str:
        """``churn/3`` of ``model-package/churn/3``; the resource itself where it has no kind."""
        return re.split("[/:]", self.resource, maxsplit=1)[-1]


def make(service: str, region: str, account: str, resource: str) -> str:
    """The ARN; IAM, STS and S3 have no region in theirs, S3 no account either."""
    region = "" if service in _NO_REGION else region
    account = "" if service in _NO_ACCOUNT else account
    return f"arn:aws:{service}:{region}:{account}:{resource}"


def find(text: str) -> Arn | None:
    """The parts of a text that is an ARN, else None."""
    found = _ARN.fullmatch(text)
    return Arn(*found.groups()) if found else None


def parse(text: str, service: str, *kinds: str) -> Arn:
    """The parts; raises ``AwsError`` ValidationException unless it is this service's, and of one of the kinds if any
    are given."""
    arn = find(text)
    if arn is None or arn.service != service or (kinds and arn.kind not in kinds):
        wanted = " or ".join(kinds) or service
        raise AwsError("ValidationException", f"{text!r} is not the ARN of a {wanted}")
    return arn


def name_of(text: str, service: str, kind: str) -> str:
    """What members that take a name or an ARN mean: the name (``GROUP/N`` of a model package)."""
    return parse(text, service, kind).name if text.startswith("arn:") else text


def package(text: str) -> tuple[str, int]:
    """(group, version) of a versioned model package's ARN. Raises ``AwsError`` for another."""
    group, slash, number = parse(text, "sagemaker", "model-package").name.rpartition("/")
    if not slash or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise AwsError("ValidationException", f"{text!r} is not the ARN of a version of a model package group")
    return group, int(number)
