"""Counts of keys in files: what control counts there is what a gateway finds, and the other way round."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from loopline.domain.allowances import FILE_BYTES, terms
from loopline.errors import QuotaExceeded, RateLimited
from loopline.gateway.allowances import Allowance
from loopline.gateway.snapshot import KeySpec
from loopline.store import allowances
from loopline.store.allowances import spend

NOW = 1_800_000_000.0


@pytest.mark.parametrize("gateway_first", [True, False])
def test_a_gateway_and_control_count_in_one_place(tmp_path: Path, gateway_first: bool) -> None:
    path, limits = tmp_path / "counts" / "k", terms(0.01, 10, 8, 3600)
    if not gateway_first:
        spend(path, limits, NOW)
    path.parent.mkdir(exist_ok=True)
    gateway = Allowance(path, lambda: NOW)
    gateway.configure(KeySpec(sha256="", role="invoker", rate=0.01, burst=10, quota=8, quota_seconds=3600))
    if gateway_first:
        gateway.spend()
    spend(path, limits, NOW)
    assert b"x-ratelimit-remaining: 7\r\nx-quota-limit: 8\r\nx-quota-remaining: 5\r\n" in gateway.spend()
    for _ in range(5):
        spend(path, limits, NOW)
    for refused in (lambda: spend(path, limits, NOW), gateway.spend):
        with pytest.raises(QuotaExceeded, match="quota of 8 requests in 3600 s is used up"):
            refused()
    spend(path, limits, NOW + 3600)
    assert path.stat().st_size == FILE_BYTES and path.stat().st_mode & 0o777 == 0o600


def test_threads_that_count_at_the_same_time_lose_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "LOCK_SECONDS", 60.0)  # on a busy machine a thread may rest with the lock
    limits, taken = terms(1e-6, 300, None, None), []

    def count() -> None:
        for _ in range(100):
            try:
                spend(tmp_path / "k", limits, NOW)
                taken.append(1)
            except RateLimited:
                pass

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 300


def test_a_process_that_was_stopped_while_it_counted_is_not_waited_for(tmp_path: Path) -> None:
    held = os.open(tmp_path / "k", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        spend(tmp_path / "k", terms(None, None, 1, 60), NOW)
        with pytest.raises(QuotaExceeded):
            spend(tmp_path / "k", terms(None, None, 1, 60), NOW)
    finally:
        os.close(held)
