"""The demo is a test: every figure it shows is checked by itself. It runs here as a stranger runs it, and once more
without a network; then nothing of it may be left."""

import csv
import importlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from loopline.testing.live import processes_that_mention, until

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo"
TEMPLATE = ROOT / "src" / "loopline" / "cli" / "templates" / "tabular"
STAGES = 11
LONGEST_SECONDS = 900
NO_NETWORK = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def run_demo(folder: Path, before: list[str] | None = None, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOOPLINE_")}
    return subprocess.run(
        [*(before or []), sys.executable, str(DEMO / "run.py")],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
        env={**kept, "DEMO_DIR": str(folder), **environ},
    )


def check_whole_loop(done: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stderr == ""
    assert "\x1b" not in done.stdout  # plain when piped
    headings = [line for line in done.stdout.splitlines() if line[:2].strip().isdigit() and line[2:4] == "  "]
    assert [int(line[:2]) for line in headings[:STAGES]] == list(range(1, STAGES + 1))
    assert "the platform is stopped; nothing of it is left running" in done.stdout
    assert "lk_" not in done.stdout and "whsec_" not in done.stdout  # no key is shown
    until(lambda: not processes_that_mention(folder), f"nothing runs any more: {processes_that_mention(folder)}")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", Path]:
    """In the middle of somebody's project, as `.demo` is: what lies around says nothing about the demo's."""
    around = tmp_path_factory.mktemp("demo")
    (around / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--nonsense"\n[tool.uv]\nno-index = true\n'
    )
    folder = around / "demo"
    return run_demo(folder, EXIT="1"), folder


def test_the_demo_plays_the_whole_loop_and_leaves_nothing_running(
    played: tuple["subprocess.CompletedProcess[str]", Path],
) -> None:
    check_whole_loop(*played)


def test_the_demo_needs_no_network(played: tuple["subprocess.CompletedProcess[str]", Path], tmp_path: Path) -> None:
    """After a run that has filled uv's cache, as `make demo` does before its first."""
    if subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not make a network namespace")
    check_whole_loop(run_demo(tmp_path / "demo", NO_NETWORK, EXIT="1"), tmp_path / "demo")


def test_the_demo_touches_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not delete")
    done = run_demo(tmp_path)
    assert done.returncode == 1
    assert "is not empty" in done.stdout
    assert (tmp_path / "thesis.txt").exists()


# -- its parts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DEMO))
    yield importlib.import_module
    for name in ("patients", "sink"):
        sys.modules.pop(name, None)


def rows_of(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def test_no_live_patient_trains_the_first_version_and_none_is_in_the_test_set(parts, tmp_path: Path) -> None:
    patients = parts("patients")
    (tmp_path / "data").mkdir()
    before = rows_of(TEMPLATE / "data" / "patients.csv")
    (tmp_path / "data" / "patients.csv").write_text((TEMPLATE / "data" / "patients.csv").read_text())
    kept, stream = patients.divide(tmp_path)
    after = rows_of(tmp_path / "data" / "patients.csv")
    assert (kept, len(before) - kept) == (len(after), patients.LIVE)
    live = {tuple(row) for row in before} - set(after)
    assert len(live) == patients.LIVE
    assert not live & set(rows_of(TEMPLATE / "data" / "patients-test.csv"))
    seen = {(sample.truth, sample.early) for sample in (stream.next() for _ in range(500))}
    assert len(seen) == 4  # both diagnoses among early and late patients


def test_a_change_of_unit_changes_one_feature_of_about_half_of_the_measurements(parts, tmp_path: Path) -> None:
    patients = parts("patients")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patients.csv").write_text((TEMPLATE / "data" / "patients.csv").read_text())
    _, stream = patients.divide(tmp_path)
    assert not any(stream.next().shifted for _ in range(200))
    stream.pixels = True
    samples = [stream.next() for _ in range(1000)]
    assert 0.4 < sum(sample.shifted for sample in samples) / 1000 < 0.6
    for sample in samples:
        area = json.loads(sample.body())["instances"][0]["mean_area"]
        assert (area > 8000) == sample.shifted


def test_the_receiver_tells_a_signed_message_from_a_forged_one(parts) -> None:
    sink_module = parts("sink")
    body = json.dumps({"type": "alarm.ALARM", "timestamp": "now", "data": {"summary": "drift"}})
    with sink_module.Sink() as sink:
        sink.secret = "whsec_" + "c2VjcmV0" * 6
        at = time.time()
        from datetime import UTC, datetime

        signature = Webhook(sink.secret).sign("de_1", datetime.fromtimestamp(int(at), UTC), body)
        headers = {"webhook-id": "de_1", "webhook-timestamp": str(int(at)), "webhook-signature": signature}
        for extra in (headers, {**headers, "webhook-id": "de_2"}, {**headers, "webhook-timestamp": "1"}, {}):
            request = urllib.request.Request(f"http://{sink.place}/", data=body.encode(), headers=extra)
            urllib.request.urlopen(request, timeout=60).close()
        assert [message.signed for message in sink.messages] == [True, False, False, False]
