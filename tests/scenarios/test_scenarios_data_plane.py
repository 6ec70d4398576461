"""A platform with two gateways behind TLS: predictions go on whatever happens beside them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.testing import boxes
from loopline.testing.live import MAIN, Platform, until

LOOP = (
    boxes.LOOP
    + """
[approval]
policy = "auto"

[endpoint]
name = "boxes"
deploy_on_approval = true
"""
)
MANY = 60


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("live") / "data", tls="local", gateways=2)
    running.start()
    try:
        found = running.run(boxes.project(loop_toml=LOOP))
        assert found["status"] == "Succeeded", found
        until(lambda: running.ask("GET", "/api/endpoints/boxes").json.get("status") == "InService", "boxes serves", 60)
        yield running
    finally:
        running.stop()


def statuses(platform: Platform, count: int) -> list[int]:
    """Of as many predictions, each on a connection of its own and after a handshake of its own."""
    return [platform.predict({"size": 3}).status for _ in range(count)]


def test_the_whole_loop_runs_over_tls(platform: Platform) -> None:
    assert platform.url.startswith("https://127.0.0.1:")
    assert platform.predict({"size": 3}).status == 200
    done = platform.cli("endpoints", "list")
    assert done.returncode == 0, done.stderr
    assert "boxes" in done.stdout


def test_git_reaches_it_over_tls(platform: Platform, tmp_path: Path) -> None:
    environ = {**platform.environ(), "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}

    def run(*argv: str) -> str:
        done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
        return f"{done.returncode} {done.stderr}"

    assert run("git", "init", "-q") == "0 "
    assert run(sys.executable, "-c", MAIN, "remote", "--project", "boxes", "--set").startswith("0 ")
    # The handshake and the key were accepted: what is missing is a push.
    assert "nothing was pushed to the project 'boxes' yet" in run("git", "ls-remote", "loopline")


def test_two_gateways_answer_on_one_port(platform: Platform) -> None:
    until(
        lambda: statuses(platform, 5) and all(platform.process(f"gateway-{number}") for number in (0, 1)),
        "two gateways",
    )
    folders = [platform.folder / "spool" / f"gateway-{number}" for number in (0, 1)]
    until(
        lambda: set(statuses(platform, 10)) == {200} and all(any(folder.glob("*.seg")) for folder in folders),
        "both have answered",
    )


def test_predictions_go_on_while_control_stands_still(platform: Platform) -> None:
    control = platform.process("control")
    assert control
    os.kill(control, signal.SIGSTOP)
    try:
        assert set(statuses(platform, MANY)) == {200}
    finally:
        os.kill(control, signal.SIGCONT)
    assert platform.ask("GET", "/api/projects").status == 200


def test_no_request_that_comes_after_the_death_of_a_gateway_is_lost(platform: Platform) -> None:
    for name in ("gateway-0", "gateway-1"):
        killed = platform.process(name)
        assert killed
        os.kill(killed, signal.SIGKILL)
        assert set(statuses(platform, MANY)) == {200}
        until(lambda name=name, killed=killed: platform.process(name) not in (None, killed), f"{name} is back")


def test_no_request_is_lost_where_every_gateway_is_killed(platform: Platform) -> None:
    killed = {name: platform.process(name) for name in ("gateway-0", "gateway-1")}
    for pid in killed.values():
        assert pid
        os.kill(pid, signal.SIGKILL)
    assert set(statuses(platform, MANY)) == {200}  # those that came before a gateway was back waited in the kernel
