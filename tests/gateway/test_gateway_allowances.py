"""Rate and quota of a key: the counts themselves, and what callers of a real gateway are told."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopline.errors import QuotaExceeded, RateLimited
from loopline.gateway.allowances import Allowance, Allowances
from loopline.gateway.snapshot import KeySpec
from loopline.testing.clock import ManualClock

ECHO = """
    def load(model_dir): return None
    def predict(model, rows): return [row[0] for row in rows]
"""
MIDNIGHT = 1_800_057_600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(MIDNIGHT + 100)


def spec(**limits: float | int) -> KeySpec:
    return KeySpec(sha256="", role="invoker", endpoints=("*",), **limits)  # type: ignore[arg-type]


def allowance(path: Path, clock: ManualClock, **limits: float | int) -> Allowance:
    made = Allowance(path, clock.now)
    made.configure(spec(**limits))
    return made


def test_the_eleventh_request_of_ten_a_second_is_refused_and_a_tenth_of_a_second_later_is_not(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, rate=10)
    left = [key.spend() for _ in range(10)]
    assert left[0] == b"x-ratelimit-limit: 10\r\nx-ratelimit-remaining: 9\r\n"
    assert left[-1] == b"x-ratelimit-limit: 10\r\nx-ratelimit-remaining: 0\r\n"
    with pytest.raises(RateLimited) as refused:
        key.spend()
    assert refused.value.details["retry_after_seconds"] == 1
    clock.advance(0.1)
    key.spend()
    with pytest.raises(RateLimited):
        key.spend()


def test_a_bucket_fills_to_its_burst_and_no_further(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, rate=1, burst=5)
    clock.advance(3600)
    for _ in range(5):
        key.spend()
    with pytest.raises(RateLimited):
        key.spend()


def test_a_slow_rate_says_when_to_come_again(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, rate=1 / 30)
    key.spend()
    with pytest.raises(RateLimited) as refused:
        key.spend()
    assert refused.value.details["retry_after_seconds"] == 30


def test_a_clock_that_was_set_back_shuts_nobody_out(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, rate=1, burst=2)
    key.spend()
    key = allowance(tmp_path / "k", ManualClock(MIDNIGHT - 1e6), rate=1, burst=2)
    with pytest.raises(RateLimited) as refused:
        for _ in range(3):
            key.spend()
    assert refused.value.details["retry_after_seconds"] <= 2


def test_a_quota_begins_anew_at_midnight_and_survives_a_restart(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, quota=3, quota_seconds=86400)
    assert key.spend() == b"x-quota-limit: 3\r\nx-quota-remaining: 2\r\n"
    key.spend()
    key.close()
    key = allowance(tmp_path / "k", clock, quota=3, quota_seconds=86400)
    key.spend()
    with pytest.raises(QuotaExceeded) as refused:
        key.spend()
    assert refused.value.details["retry_after_seconds"] == 86300
    clock.advance(86300)
    key.spend()


def test_what_a_rate_refuses_counts_for_no_quota(tmp_path, clock):
    key = allowance(tmp_path / "k", clock, rate=1, quota=10)
    key.spend()
    for _ in range(20):
        with pytest.raises(RateLimited):
            key.spend()
    clock.advance(1)
    assert b"x-quota-remaining: 8\r\n" in key.spend()


def _spend_many(path: str, count: int, spent: "multiprocessing.Queue[int]") -> None:
    key = Allowance(Path(path))
    key.configure(spec(rate=1e-6, burst=500, quota=100_000))
    taken = 0
    for _ in range(count):
        try:
            key.spend()
            taken += 1
        except RateLimited:
            pass
    spent.put(taken)


def test_processes_that_count_at_the_same_time_lose_no_count(tmp_path):
    context = multiprocessing.get_context("spawn")
    spent = context.Queue()
    workers = [context.Process(target=_spend_many, args=(str(tmp_path / "k"), 400, spent)) for _ in range(3)]
    for worker in workers:
        worker.start()
    total = sum(spent.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert total == 500


def test_the_files_of_keys_that_are_gone_are_removed(tmp_path):
    keys = Allowances(tmp_path / "allowances")
    assert keys.of("aaaaaaaa", spec()) is None
    assert keys.of("bbbbbbbb", spec(rate=1)) is keys.of("bbbbbbbb", spec(rate=2))
    keys.keep({"aaaaaaaa", "bbbbbbbb"})
    assert [path.name for path in (tmp_path / "allowances").iterdir()] == ["bbbbbbbb"]
    keys.keep({"aaaaaaaa"})
    file = tmp_path / "allowances" / "bbbbbbbb"
    assert file.exists(), "another gateway may know the key already"
    os.utime(file, (0, time.time() - 61))
    keys.keep({"aaaaaaaa"})
    assert not file.exists()


# -- through a gateway


def limit(rig, until, **limits: float | int) -> None:
    """Give the rig's key limits, in the next snapshot."""
    document = json.loads((rig.folder / "snapshot.json").read_text())
    rig.number = document["number"] = document["number"] + 1
    document["keys"]["abcdefgh"] = rig.key_spec(**limits)
    rig.write_snapshot(json.dumps(document))
    until(lambda: rig.state().get("number") == rig.number)


def test_a_key_over_its_rate_is_told_when_to_come_again(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway()
    limit(rig, until, rate=0.01, burst=3)
    client = rig.client()
    answers = [rig.ask({"x": 1}, client) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429]
    assert [answer.getheader("x-ratelimit-remaining") for _, _, answer in answers] == ["2", "1", "0", None]
    _, document, answer = answers[-1]
    assert document["error"]["code"] == "rate_limited" and "0.01 requests a second" in document["error"]["message"]
    assert document["error"]["request_id"] == answer.getheader("x-request-id")
    assert 40 <= int(answer.getheader("retry-after")) <= 100


def test_gateways_count_a_quota_together_and_restarts_forget_nothing(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    first = rig.start_gateway(LOOPLINE_GATEWAYS="2")
    limit(rig, until, quota=40)
    own = rig.folder / "second.log"
    fd = rig.listening.fileno()
    command = [sys.executable, "-m", "loopline.gateway", "--dir", str(rig.folder), "--index", "1"]
    with own.open("wb") as log:
        rig.processes["second"] = subprocess.Popen(
            [*command, "--listen-fd", str(fd)],
            pass_fds=[fd],
            env={**rig.environ, "LOOPLINE_GATEWAYS": "2"},
            stdout=log,
            stderr=log,
        )
    until(lambda: b"listening" in own.read_bytes())
    statuses = [rig.ask({"x": 1})[0] for _ in range(30)]
    assert statuses == [200] * 30
    assert (rig.run / "places").is_dir(), "the gateways of the host share their places"
    first.kill()
    first.wait()
    rig.start_gateway(LOOPLINE_GATEWAYS="2")
    answers = [rig.ask({"x": 1}) for _ in range(20)]
    assert [status for status, _, _ in answers] == [200] * 10 + [429] * 10
    assert answers[-1][1]["error"]["code"] == "quota_exceeded"
