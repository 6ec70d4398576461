"""Every error that loopline raises on purpose.

A class carries a stable ``code`` for programs, an HTTP ``status`` for the fronts and an ``exit_code`` for the shell;
its docstring is the default message. Fronts map an error by walking its class hierarchy, so a front needs to know the
parents only.
"""

from typing import Any, ClassVar


class LooplineError(Exception):
    """loopline met an error that it has no better name for."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, **details: Any) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]
        self.details = details
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """The one JSON error shape, without the request id that the front adds."""
        return {"code": self.code, "message": self.message, **({"details": self.details} if self.details else {})}


class InvalidInput(LooplineError):
    """The input is not valid."""

    code = "invalid_input"
    status = 400
    exit_code = 2


class TooLarge(InvalidInput):
    """The input is larger than the limit."""

    code = "too_large"
    status = 413


class RangeNotSatisfiable(InvalidInput):
    """None of the bytes that are asked for is there."""

    code = "range_not_satisfiable"
    status = 416


class Unauthenticated(LooplineError):
    """A valid API key is needed: send it as `Authorization: Bearer KEY`."""

    code = "unauthenticated"
    status = 401


class BadSignature(Unauthenticated):
    """The signature of the request does not match."""

    code = "bad_signature"


class Expired(Unauthenticated):
    """The signature of the request is not of this time."""

    code = "expired"


class Forbidden(LooplineError):
    """This key's role does not allow that."""

    code = "forbidden"
    status = 403


class NotFound(LooplineError):
    """There is nothing by that name."""

    code = "not_found"
    status = 404


class Conflict(LooplineError):
    """The state of the record does not allow that."""

    code = "conflict"
    status = 409


class PreconditionFailed(Conflict):
    """What the caller demanded of the record is not so."""

    code = "precondition_failed"
    status = 412


class IllegalMove(Conflict):
    """That status may not follow the present one."""

    code = "illegal_move"


class StaleToken(Conflict):
    """Somebody else holds the lease by now; the result was not recorded."""

    code = "stale_token"


class GateRefused(Conflict):
    """The gate refused: the version has no passing evaluation."""

    code = "gate_refused"
    exit_code = 3


class Corrupt(LooplineError):
    """The stored bytes do not match their digest."""

    code = "corrupt"
    status = 500


class Unavailable(LooplineError):
    """The service is not ready; try again shortly."""

    code = "unavailable"
    status = 503


class NotReady(Unavailable):
    """The model is still being loaded; try again shortly."""

    code = "not_ready"


class Overloaded(Unavailable):
    """Too many requests are waiting; try again shortly."""

    code = "overloaded"
    status = 429


class RateLimited(Overloaded):
    """This key may not send that many requests a second."""

    code = "rate_limited"


class QuotaExceeded(RateLimited):
    """This key's quota is used up."""

    code = "quota_exceeded"


class FunctionFailed(LooplineError):
    """The function failed."""

    code = "function_failed"
    status = 502


class Timeout(LooplineError):
    """It took longer than its limit."""

    code = "timeout"
    status = 504
    exit_code = 4


class AwsError(LooplineError):
    """The request was refused in words that clients of AWS know."""

    code = "aws_error"
    status = 400

    def __init__(self, name: str, message: str | None = None, http_status: int = 400, **details: Any) -> None:
        """``name``: AWS's code; a message alone is a ``ValidationException``."""
        if message is None:
            name, message = "ValidationException", name
        super().__init__(message, **details)
        self.name = name
        self.http_status = http_status
