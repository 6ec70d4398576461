"""Requests for models that a gateway does not know: who is asked, how often, and who is told what."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loopline.errors import LooplineError, NotFound, NotReady, Unavailable
from loopline.gateway.fetching import MAX_MODELS, MAX_WAITING, Fetching


class Request:
    """One that waits; it keeps what becomes of it."""

    def __init__(self) -> None:
        self.done = False
        self.told: list[Any] = []

    def woken(self) -> None:
        self.told.append("woken")

    def turned_away(self, error: LooplineError, retry_seconds: int) -> None:
        self.told.append((type(error), error.message, retry_seconds))


class Rig:
    """``fetching`` with a clock, and what control hears."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.control.bind(str(folder / "wake.sock"))
        self.control.setblocking(False)
        self.fetching = Fetching(folder, lambda: self.now)

    def ask(self, model: str = "a.tar.gz", *, until: float = 130.0) -> Request:
        request = Request()
        self.fetching.hold(request, "many", model, until)
        return request

    def heard(self) -> list[str]:
        """The models that control was asked for since the last look."""
        found = []
        while True:
            try:
                message = json.loads(self.control.recv(8192))
            except BlockingIOError:
                return found
            assert (message["kind"], message["endpoint"]) == ("wanted", "many")
            found.append(message["model"])

    def refuse(self, model: str = "a.tar.gz", *, absent: bool = True) -> None:
        message = {"kind": "refused", "endpoint": "many", "model": model, "message": "it is not", "absent": absent}
        self.fetching.heard(json.dumps(message).encode())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.control.close()


def table(*models: str) -> Any:
    known = frozenset(model.encode() for model in models)
    return {b"many": SimpleNamespace(models=SimpleNamespace(has=known.__contains__))}


def test_control_is_asked_once_for_all_who_wait_and_again_while_they_do(rig: Rig) -> None:
    first, second = rig.ask(), rig.ask()
    assert rig.heard() == ["a.tar.gz"]
    rig.fetching.look()
    assert rig.heard() == []
    rig.now += 0.5
    rig.fetching.look()
    assert rig.heard() == ["a.tar.gz"]
    rig.fetching.switched(table("b.tar.gz"))
    assert first.told == second.told == []
    rig.fetching.switched(table("a.tar.gz"))
    assert first.told == second.told == ["woken"]
    rig.now += 1
    rig.fetching.look()
    assert rig.heard() == []


def test_a_model_with_any_name_is_asked_for_as_it_is_called(rig: Rig) -> None:
    rig.ask("../北/a b.tar.gz")
    assert rig.heard() == ["../北/a b.tar.gz"]


def test_who_waits_for_what_does_not_come_is_told_why(rig: Rig) -> None:
    absent, broken, other = rig.ask("a.tar.gz"), rig.ask("b.tar.gz"), rig.ask("c.tar.gz", until=110.0)
    for data in (b"", b"[]", b'{"kind": "refused"}', b'{"kind": "snapshot"}', b"\xff"):
        rig.fetching.heard(data)
    rig.refuse("a.tar.gz")
    rig.refuse("b.tar.gz", absent=False)
    rig.refuse("nobody asked")
    assert absent.told == [(NotFound, "it is not", 1)]
    assert broken.told == [(Unavailable, "it is not", 10)]
    assert other.told == []
    rig.now = 110.0
    rig.fetching.look()
    assert other.told == [(NotReady, "the model c.tar.gz did not come in time; try again", 1)]


def test_who_has_gone_is_neither_woken_nor_waited_for(rig: Rig) -> None:
    request = rig.ask()
    request.done = True
    rig.heard()
    rig.now += 1
    rig.fetching.look()
    assert rig.heard() == []
    rig.fetching.switched(table("a.tar.gz"))
    assert request.told == []


def test_an_endpoint_that_is_gone_wakes_its_requests_to_be_refused(rig: Rig) -> None:
    request = rig.ask()
    rig.fetching.switched({})
    assert request.told == ["woken"]


def test_there_is_an_end_to_waiting(rig: Rig) -> None:
    waiting = [rig.ask("popular") for _ in range(MAX_WAITING)]
    assert rig.ask("popular").told[0][0] is Unavailable
    for number in range(MAX_MODELS - 1):
        assert rig.ask(f"{number}").told == []
    assert rig.ask("one more").told[0][0] is Unavailable
    rig.fetching.drop()
    assert {request.told[0][0] for request in waiting} == {Unavailable}
