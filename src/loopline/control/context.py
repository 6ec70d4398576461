"""What a use case is given: the open installation and who asks."""

import random
import secrets as _secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopline.config import Settings
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.store.blobs import BlobStore
from loopline.store.db import Db
from loopline.store.secrets import Secrets, Signer

if TYPE_CHECKING:
    from loopline.compute import ComputeBackend
    from loopline.compute.environments import Environments
    from loopline.outbound.http import Sender
    from loopline.outbound.mail import Mailer


class Clock:
    """The time of day, in seconds since the epoch. Tests pass their own."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()


class Ids:
    """Makes ids; with a ``seed`` the same ones in the same order."""

    def __init__(self, clock: Clock, seed: str = "") -> None:
        self._clock = clock
        self._bits: Callable[[int], int] = random.Random(seed).getrandbits if seed else _secrets.randbits  # noqa: S311

    def new(self, prefix: str) -> str:
        """A time-sortable id such as ``ex_06...``."""
        return names.make_id(prefix, self._clock.now(), self._bits)


@dataclass
class Context:
    """Everything that control may touch. One per process; safe for its threads."""

    settings: Settings
    db: Db
    blobs: BlobStore
    secrets: Secrets
    signer: Signer
    compute: "ComputeBackend"
    environments: "Environments"
    outbound: "Sender"
    clock: Clock
    ids: Ids
    host: str
    wake: Callable[[], None] = field(default=lambda: None)  # makes the engine look now
    cache: dict[str, Any] = field(default_factory=dict)  # what may be forgotten at any moment
    # owner's noun -> f(ctx, tx, job): told in the transaction in which a job of that owner ends
    job_owners: dict[str, Callable[["Context", Any, dict[str, Any]], None]] = field(default_factory=dict)
    publishing: threading.Lock = field(default_factory=threading.Lock)
    mail: "Mailer | None" = None  # where the administrator names a mail server

    @property
    def attempts_dir(self) -> str:
        """Where attempt folders stand."""
        return str(self.settings.dir / "attempts")


SYSTEM = Actor(name="loopline", role="admin")
