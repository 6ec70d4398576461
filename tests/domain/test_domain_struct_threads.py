"""Threads of control read loop.toml and pipelines at the same moment, for the first time too."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from loopline.domain.pipelines import PipelineSpec
from loopline.domain.projects import Loop

TRIES = 60
THREADS = 6

VALID: dict[type, dict[str, Any]] = {
    Loop: {"project": {"name": "a"}, "model": {"name": "a"}},
    PipelineSpec: {},
}


def ends_by_signal(read: Callable[[], Any]) -> int:
    """In how many of ``TRIES`` children, forked before the type was first used, threads that ``read`` break it."""
    broken = 0
    for _ in range(TRIES):
        child = os.fork()
        if child == 0:
            sys.setswitchinterval(1e-6)
            together = threading.Barrier(THREADS)

            def first(together: threading.Barrier = together) -> None:
                together.wait()
                with contextlib.suppress(msgspec.ValidationError):
                    read()

            threads = [threading.Thread(target=first) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os._exit(0)
        broken += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return broken


@pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
def test_the_first_use_of_a_type_by_many_threads_breaks_nothing(kind: type) -> None:
    assert ends_by_signal(lambda: msgspec.convert(VALID[kind], kind)) == 0
