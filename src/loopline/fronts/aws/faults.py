"""Errors of loopline as the codes that clients of AWS know; handlers raise ``AwsError`` where a client reads the text.

Sources: the "Errors" section of each operation in the API references, and botocore's error shapes.
"""

from typing import NamedTuple

from loopline import errors
from loopline.errors import AwsError, LooplineError
from loopline.fronts.aws.models import QUERY, REST_XML


class Fault(NamedTuple):
    """What an answer says."""

    code: str
    message: str
    status: int


# by class, the nearest first: code in JSON protocols, in the query protocol, in S3's; status in the same order
_BY_CLASS: tuple[tuple[type[LooplineError], tuple[str, str, str], tuple[int, int, int]], ...] = (
    (errors.BadSignature, ("InvalidSignatureException", "SignatureDoesNotMatch", "SignatureDoesNotMatch"), (403,) * 3),
    (errors.Expired, ("InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed"), (403,) * 3),
    (
        errors.Unauthenticated,
        ("MissingAuthenticationTokenException", "MissingAuthenticationToken", "AccessDenied"),
        (403,) * 3,
    ),
    (errors.Forbidden, ("AccessDeniedException", "AccessDenied", "AccessDenied"), (400, 403, 403)),
    (errors.TooLarge, ("RequestEntityTooLargeException", "RequestEntityTooLarge", "EntityTooLarge"), (413, 413, 400)),
    (errors.InvalidInput, ("ValidationException", "ValidationError", "InvalidArgument"), (400,) * 3),
    (errors.NotFound, ("ResourceNotFound", "ResourceNotFound", "NoSuchKey"), (400, 404, 404)),
    (errors.Overloaded, ("ThrottlingException", "Throttling", "SlowDown"), (400, 400, 503)),
    (errors.Unavailable, ("ServiceUnavailable", "ServiceUnavailable", "ServiceUnavailable"), (503,) * 3),
    (errors.Conflict, ("ResourceInUse", "ResourceInUse", "OperationAborted"), (400, 409, 409)),
    (errors.Timeout, ("ServiceUnavailable", "ServiceUnavailable", "RequestTimeout"), (503, 503, 400)),
)
# what one service calls it
_BY_SERVICE: dict[tuple[str, type[LooplineError]], tuple[str, int]] = {
    ("iam", errors.NotFound): ("NoSuchEntity", 404),
    ("iam", errors.Conflict): ("EntityAlreadyExists", 409),
    ("sns", errors.NotFound): ("NotFound", 404),
    ("sns", errors.InvalidInput): ("InvalidParameter", 400),
    ("logs", errors.NotFound): ("ResourceNotFoundException", 400),
    ("logs", errors.InvalidInput): ("InvalidParameterException", 400),
    ("ecr", errors.NotFound): ("RepositoryNotFoundException", 400),
    ("ecr", errors.Conflict): ("RepositoryAlreadyExistsException", 400),
    ("ecr", errors.InvalidInput): ("InvalidParameterException", 400),
    ("cloudwatch", errors.InvalidInput): ("InvalidParameterValue", 400),
    ("application-autoscaling", errors.NotFound): ("ObjectNotFoundException", 400),
    ("sagemaker-runtime", errors.InvalidInput): ("ValidationError", 400),
    ("sagemaker-runtime", errors.NotFound): ("ValidationError", 400),
}


def fault_of(error: LooplineError, protocol: str, service: str | None) -> Fault:
    """What to answer for an error of loopline; one that was not meant says nothing of itself."""
    if isinstance(error, AwsError):
        return Fault(error.name, error.message, error.http_status)
    place = 2 if protocol == REST_XML else 1 if protocol == QUERY else 0
    for kind, codes, statuses in _BY_CLASS:
        if isinstance(error, kind):
            own = _BY_SERVICE.get((service or "", kind))
            return Fault(own[0], error.message, own[1]) if own else Fault(codes[place], error.message, statuses[place])
    return Fault("InternalError" if place == 2 else "InternalFailure", error.message, 500)
