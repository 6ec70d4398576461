"""Every status and what may follow it. ``store.records.move`` is the only place where a status changes."""

from enum import StrEnum

from loopline.errors import IllegalMove


class ExecutionStatus(StrEnum):
    """An execution of a pipeline."""

    PENDING = "Pending"
    RUNNING = "Running"
    STOPPING = "Stopping"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class StepStatus(StrEnum):
    """A step of an execution; ``Skipped`` when its branch was not taken or what it needs did not succeed."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    STOPPED = "Stopped"


class JobStatus(StrEnum):
    """User's work on compute; between two attempts a job is Pending."""

    PENDING = "Pending"
    RUNNING = "Running"
    STOPPING = "Stopping"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class AttemptStatus(StrEnum):
    """One process of a job; ``Lost`` when its host or its shim is gone without a result."""

    STARTING = "Starting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    LOST = "Lost"


class RunStatus(StrEnum):
    """A tracking record."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class EnvironmentStatus(StrEnum):
    """A built set of packages."""

    PENDING = "Pending"
    BUILDING = "Building"
    READY = "Ready"
    FAILED = "Failed"


class PushStatus(StrEnum):
    """A commit that reached the platform: its environment is built, its checks run, then its pipeline starts."""

    RECEIVED = "Received"
    PREPARING = "Preparing"
    CHECKING = "Checking"
    COMPILING = "Compiling"
    STARTED = "Started"
    REJECTED = "Rejected"
    IGNORED = "Ignored"


class VersionStatus(StrEnum):
    """A model version's approval."""

    PENDING = "PendingManualApproval"
    APPROVED = "Approved"
    REJECTED = "Rejected"


class EvaluationStatus(StrEnum):
    """A gate's judgement of a version; ``Claimed`` is none: somebody's figures, which nobody measured here."""

    PENDING = "Pending"
    SCORING = "Scoring"
    PASSED = "Passed"
    REFUSED = "Refused"
    FAILED = "Failed"
    CLAIMED = "Claimed"


class CompilationStatus(StrEnum):
    """The conversion of a version's model into a form that answers the same, but faster."""

    PENDING = "Pending"
    CONVERTING = "Converting"
    PASSED = "Passed"
    REFUSED = "Refused"
    FAILED = "Failed"


class ServableStatus(StrEnum):
    """What a variant runs without being a version: its files are unpacked and its environment is built first."""

    PENDING = "Pending"
    READY = "Ready"
    FAILED = "Failed"
    DELETED = "Deleted"


class UploadStatus(StrEnum):
    """An object that comes in parts."""

    OPEN = "Open"
    COMPLETED = "Completed"
    ABORTED = "Aborted"


class EndpointStatus(StrEnum):
    """An endpoint as a whole."""

    CREATING = "Creating"
    IN_SERVICE = "InService"
    UPDATING = "Updating"
    FAILED = "Failed"
    DELETED = "Deleted"


class VariantStatus(StrEnum):
    """A version behind an endpoint; ``Warm`` variants take no traffic but still answer, for a quick way back."""

    STARTING = "Starting"
    READY = "Ready"
    WARM = "Warm"
    FAILED = "Failed"
    STOPPED = "Stopped"


class RolloutStatus(StrEnum):
    """The act of moving traffic; ``Testing`` before it moves, ``Starting`` again where more servers are needed."""

    PENDING = "Pending"
    STARTING = "Starting"
    TESTING = "Testing"
    SHIFTING = "Shifting"
    BAKING = "Baking"
    ROLLING_BACK = "RollingBack"
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"


class CheckupStatus(StrEnum):
    """A run of an endpoint's tests against one variant; Stopped when the rollout that asked for it went back."""

    PENDING = "Pending"
    RUNNING = "Running"
    PASSED = "Passed"
    FAILED = "Failed"
    STOPPED = "Stopped"


class BatchStatus(StrEnum):
    """A table that is scored by a version; one that failed or was stopped goes on where it was when it is resumed."""

    PENDING = "Pending"
    RUNNING = "Running"
    STOPPING = "Stopping"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class InvocationStatus(StrEnum):
    """A request whose answer is fetched later."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class FunctionStatus(StrEnum):
    """A function behind a route of its own; what answered before goes on while a new one is Pending or Starting."""

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    FAILED = "Failed"
    DELETED = "Deleted"


class AlarmStatus(StrEnum):
    """An alarm's state."""

    OK = "OK"
    ALARM = "ALARM"
    INSUFFICIENT_DATA = "INSUFFICIENT_DATA"


class DeliveryStatus(StrEnum):
    """A message on its way to a subscription."""

    PENDING = "Pending"
    DELIVERED = "Delivered"
    FAILED = "Failed"


class RetrainingStatus(StrEnum):
    """A retraining asked for by an alarm, by new data or by a person."""

    PENDING = "Pending"
    COLLECTING = "Collecting"
    TRAINING = "Training"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


Moves = dict[StrEnum, frozenset[StrEnum]]


def _moves(table: dict[StrEnum, tuple[StrEnum, ...]]) -> Moves:
    return {status: frozenset(following) for status, following in table.items()}


_X, _S, _J, _A, _R = ExecutionStatus, StepStatus, JobStatus, AttemptStatus, RunStatus
_E, _P, _V, _G = EnvironmentStatus, PushStatus, VersionStatus, EvaluationStatus
_F = FunctionStatus
_N, _W, _O, _L, _D, _T = EndpointStatus, VariantStatus, RolloutStatus, AlarmStatus, DeliveryStatus, RetrainingStatus
_C = CheckupStatus
_K = CompilationStatus
_B, _I = BatchStatus, InvocationStatus
_Y = UploadStatus
_Q = ServableStatus

# noun -> status -> what may follow. A status that nothing follows is terminal. A noun's first key is where it begins,
# unless INITIAL says more.
MOVES: dict[str, Moves] = {
    "execution": _moves(
        {
            _X.PENDING: (_X.RUNNING, _X.STOPPED, _X.FAILED),
            _X.RUNNING: (_X.STOPPING, _X.SUCCEEDED, _X.FAILED),
            _X.STOPPING: (_X.STOPPED, _X.FAILED),
            _X.SUCCEEDED: (),
            _X.FAILED: (_X.RUNNING,),  # retry starts from the failed step
            _X.STOPPED: (_X.RUNNING,),
        }
    ),
    "step": _moves(
        {
            _S.PENDING: (_S.RUNNING, _S.SUCCEEDED, _S.FAILED, _S.SKIPPED, _S.STOPPED),
            _S.RUNNING: (_S.SUCCEEDED, _S.FAILED, _S.STOPPED),
            _S.SUCCEEDED: (),
            _S.FAILED: (_S.PENDING,),
            _S.SKIPPED: (_S.PENDING,),
            _S.STOPPED: (_S.PENDING,),
        }
    ),
    "job": _moves(
        {
            _J.PENDING: (_J.RUNNING, _J.STOPPED, _J.FAILED),
            _J.RUNNING: (_J.PENDING, _J.STOPPING, _J.SUCCEEDED, _J.FAILED),
            _J.STOPPING: (_J.STOPPED, _J.SUCCEEDED, _J.FAILED),
            _J.SUCCEEDED: (),
            _J.FAILED: (),
            _J.STOPPED: (),
        }
    ),
    "attempt": _moves(
        {
            _A.STARTING: (_A.RUNNING, _A.SUCCEEDED, _A.FAILED, _A.STOPPED, _A.LOST),
            _A.RUNNING: (_A.SUCCEEDED, _A.FAILED, _A.STOPPED, _A.LOST),
            _A.SUCCEEDED: (),
            _A.FAILED: (),
            _A.STOPPED: (),
            _A.LOST: (),
        }
    ),
    "run": _moves(
        {
            _R.RUNNING: (_R.SUCCEEDED, _R.FAILED, _R.STOPPED),
            _R.SUCCEEDED: (),
            _R.FAILED: (_R.RUNNING,),
            _R.STOPPED: (_R.RUNNING,),
        }
    ),
    "environment": _moves(
        {
            _E.PENDING: (_E.BUILDING, _E.READY, _E.FAILED),
            _E.BUILDING: (_E.READY, _E.FAILED, _E.PENDING),
            _E.READY: (_E.PENDING,),
            _E.FAILED: (_E.PENDING,),
        }
    ),
    "push": _moves(
        {
            _P.RECEIVED: (_P.PREPARING, _P.REJECTED, _P.IGNORED),
            _P.PREPARING: (_P.CHECKING, _P.COMPILING, _P.REJECTED),
            _P.CHECKING: (_P.COMPILING, _P.REJECTED),
            _P.COMPILING: (_P.STARTED, _P.REJECTED),
            _P.STARTED: (),
            _P.REJECTED: (),
            _P.IGNORED: (),
        }
    ),
    "version": _moves(
        {
            _V.PENDING: (_V.APPROVED, _V.REJECTED),
            _V.APPROVED: (_V.REJECTED, _V.PENDING),  # Pending again: somebody is to decide anew
            _V.REJECTED: (_V.APPROVED, _V.PENDING),
        }
    ),
    "evaluation": _moves(
        {
            _G.PENDING: (_G.SCORING, _G.PASSED, _G.REFUSED, _G.FAILED, _G.CLAIMED),
            _G.SCORING: (_G.PASSED, _G.REFUSED, _G.FAILED),
            _G.PASSED: (),
            _G.REFUSED: (),
            _G.FAILED: (),
            _G.CLAIMED: (),
        }
    ),
    "compilation": _moves(
        {
            _K.PENDING: (_K.CONVERTING, _K.FAILED),
            _K.CONVERTING: (_K.PASSED, _K.REFUSED, _K.FAILED),
            _K.PASSED: (),
            _K.REFUSED: (),
            _K.FAILED: (),
        }
    ),
    "servable": _moves(
        {
            _Q.PENDING: (_Q.READY, _Q.FAILED, _Q.DELETED),
            _Q.READY: (_Q.DELETED,),
            _Q.FAILED: (_Q.PENDING, _Q.DELETED),
            _Q.DELETED: (),
        }
    ),
    "upload": _moves({_Y.OPEN: (_Y.COMPLETED, _Y.ABORTED), _Y.COMPLETED: (), _Y.ABORTED: ()}),
    "endpoint": _moves(
        {
            _N.CREATING: (_N.IN_SERVICE, _N.FAILED, _N.DELETED),
            _N.IN_SERVICE: (_N.UPDATING, _N.DELETED),
            _N.UPDATING: (_N.IN_SERVICE, _N.DELETED),
            _N.FAILED: (_N.CREATING, _N.DELETED),
            _N.DELETED: (),
        }
    ),
    "variant": _moves(
        {
            _W.STARTING: (_W.READY, _W.FAILED, _W.STOPPED),
            _W.READY: (_W.WARM, _W.STOPPED),
            _W.WARM: (_W.READY, _W.STOPPED),
            _W.FAILED: (_W.STARTING, _W.STOPPED),
            _W.STOPPED: (_W.STARTING,),
        }
    ),
    "rollout": _moves(
        {
            _O.PENDING: (_O.STARTING, _O.ROLLED_BACK, _O.FAILED),
            _O.STARTING: (_O.TESTING, _O.SHIFTING, _O.ROLLING_BACK, _O.FAILED),
            _O.TESTING: (_O.SHIFTING, _O.ROLLING_BACK),
            _O.SHIFTING: (_O.BAKING, _O.SUCCEEDED, _O.ROLLING_BACK),
            _O.BAKING: (_O.STARTING, _O.TESTING, _O.SHIFTING, _O.SUCCEEDED, _O.ROLLING_BACK),
            _O.ROLLING_BACK: (_O.ROLLED_BACK,),
            _O.SUCCEEDED: (),
            _O.ROLLED_BACK: (),
            _O.FAILED: (),
        }
    ),
    "test_run": _moves(
        {
            _C.PENDING: (_C.RUNNING, _C.FAILED, _C.STOPPED),
            _C.RUNNING: (_C.PASSED, _C.FAILED, _C.STOPPED),
            _C.PASSED: (),
            _C.FAILED: (),
            _C.STOPPED: (),
        }
    ),
    "batch": _moves(
        {
            _B.PENDING: (_B.RUNNING, _B.STOPPED, _B.SUCCEEDED, _B.FAILED),
            _B.RUNNING: (_B.STOPPING, _B.SUCCEEDED, _B.FAILED),
            _B.STOPPING: (_B.STOPPED, _B.SUCCEEDED, _B.FAILED),
            _B.SUCCEEDED: (),
            _B.FAILED: (_B.PENDING,),  # resumed
            _B.STOPPED: (_B.PENDING,),
        }
    ),
    "invocation": _moves(
        {
            _I.PENDING: (_I.RUNNING, _I.FAILED),
            _I.RUNNING: (_I.PENDING, _I.SUCCEEDED, _I.FAILED),  # back to Pending: it is tried again later
            _I.SUCCEEDED: (),
            _I.FAILED: (),
        }
    ),
    "function": _moves(
        {
            _F.PENDING: (_F.STARTING, _F.READY, _F.FAILED, _F.DELETED),
            _F.STARTING: (_F.PENDING, _F.READY, _F.FAILED, _F.DELETED),
            _F.READY: (_F.PENDING, _F.DELETED),
            _F.FAILED: (_F.PENDING, _F.DELETED),
            _F.DELETED: (_F.PENDING,),
        }
    ),
    "alarm": _moves(
        {
            _L.INSUFFICIENT_DATA: (_L.OK, _L.ALARM),
            _L.OK: (_L.ALARM, _L.INSUFFICIENT_DATA),
            _L.ALARM: (_L.OK, _L.INSUFFICIENT_DATA),
        }
    ),
    "delivery": _moves(
        {
            _D.PENDING: (_D.DELIVERED, _D.FAILED),
            _D.DELIVERED: (_D.PENDING,),  # sent again by a person
            _D.FAILED: (_D.PENDING,),
        }
    ),
    "retraining": _moves(
        {
            _T.PENDING: (_T.COLLECTING, _T.TRAINING, _T.FAILED),
            _T.COLLECTING: (_T.TRAINING, _T.FAILED),
            _T.TRAINING: (_T.SUCCEEDED, _T.FAILED),
            _T.SUCCEEDED: (),
            _T.FAILED: (),
        }
    ),
}

STATUSES: dict[str, type[StrEnum]] = {noun: type(next(iter(moves))) for noun, moves in MOVES.items()}


def check_move(noun: str, before: str, after: str) -> None:
    """Raise ``IllegalMove``, naming what would be legal, unless ``after`` may follow ``before``."""
    kind = STATUSES[noun]
    following = MOVES[noun][kind(before)]
    if kind(after) not in following:
        legal = ", ".join(sorted(following)) or "nothing: it is final"
        raise IllegalMove(f"a {noun} that is {before} cannot become {after}; what may follow: {legal}")


def is_terminal(noun: str, status: str) -> bool:
    """Whether work on a record with this status is over (a person may still start it again)."""
    return status in TERMINAL[noun]


TERMINAL: dict[str, frozenset[str]] = {
    "execution": frozenset({_X.SUCCEEDED, _X.FAILED, _X.STOPPED}),
    "step": frozenset({_S.SUCCEEDED, _S.FAILED, _S.SKIPPED, _S.STOPPED}),
    "job": frozenset({_J.SUCCEEDED, _J.FAILED, _J.STOPPED}),
    "attempt": frozenset({_A.SUCCEEDED, _A.FAILED, _A.STOPPED, _A.LOST}),
    "run": frozenset({_R.SUCCEEDED, _R.FAILED, _R.STOPPED}),
    "environment": frozenset({_E.READY, _E.FAILED}),
    "push": frozenset({_P.STARTED, _P.REJECTED, _P.IGNORED}),
    "evaluation": frozenset({_G.PASSED, _G.REFUSED, _G.FAILED, _G.CLAIMED}),
    "compilation": frozenset({_K.PASSED, _K.REFUSED, _K.FAILED}),
    "function": frozenset({_F.READY, _F.FAILED, _F.DELETED}),
    "servable": frozenset({_Q.READY, _Q.FAILED, _Q.DELETED}),
    "upload": frozenset({_Y.COMPLETED, _Y.ABORTED}),
    "rollout": frozenset({_O.SUCCEEDED, _O.ROLLED_BACK, _O.FAILED}),
    "test_run": frozenset({_C.PASSED, _C.FAILED, _C.STOPPED}),
    "batch": frozenset({_B.SUCCEEDED, _B.FAILED, _B.STOPPED}),
    "invocation": frozenset({_I.SUCCEEDED, _I.FAILED}),
    "delivery": frozenset({_D.DELIVERED, _D.FAILED}),
    "retraining": frozenset({_T.SUCCEEDED, _T.FAILED}),
}
