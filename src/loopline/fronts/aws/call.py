"""What a handler is given, and how a table of handlers says who may call them.

    def describe_model_package_group(call: Call, given: dict[str, Any]) -> dict[str, Any]: ...

    OPERATIONS = {"DescribeModelPackageGroup": Operation(describe_model_package_group, Permission.READ)}

``given`` is the input shape of the operation, checked: members by their names in the model, timestamps as aware
``datetime``, blobs as ``bytes``; a streaming payload is an ``Iterator[bytes]`` whose end raises when the body is not
the one that was signed, so that nothing may be committed before it has been read to its end. The result is the output
shape: members that are None are left out, timestamps may be ``datetime`` or seconds since the epoch, a streaming
payload may be ``bytes`` or an iterator of them. Handlers run in a thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loopline.control.context import Context
from loopline.domain.access import Actor, Permission
from loopline.fronts.aws import arns


@dataclass
class Call:
    """One request: who asks whom for what. What is not frozen the handler may set."""

    ctx: Context
    actor: Actor
    service: str  # botocore's name
    operation: str  # botocore's name
    account: str
    region: str
    request_id: str
    session: str = "loopline"  # of the assumed role that the caller appears as
    role: str = ""  # the AWS role's name that the caller appears as
    request_headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    trailers: dict[str, str] = field(default_factory=dict)  # filled when a streaming body has been read to its end
    warnings: list[str] = field(default_factory=list)
    status: int | None = None  # in place of the operation's own, such as 206
    headers: dict[str, str] = field(default_factory=dict)  # beside those of the output shape

    def arn(self, service: str, resource: str) -> str:
        """The ARN of something of this installation, such as ``arn("sagemaker", "pipeline/churn")``."""
        return arns.make(service, self.region, self.account, resource)

    def warn(self, text: str) -> None:
        """Answer, and let people know what would go otherwise on AWS, or what they may not expect; it is recorded."""
        if text not in self.warnings:
            self.warnings.append(text)


Handler = Callable[[Call, dict[str, Any]], dict[str, Any]]


class Operation(NamedTuple):
    """One line of a table: who answers, what the caller's role needs, and what of AWS's operation is not done."""

    handler: Handler
    permission: Permission
    partly: str = ""
