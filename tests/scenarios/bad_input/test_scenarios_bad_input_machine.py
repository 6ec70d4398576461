"""A machine that fails: bytes that flip, ports and folders that are taken, a disk that is full."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, until


@contextmanager
def flipped(platform: Platform, digest: str) -> Iterator[None]:
    """One bit of a blob is wrong meanwhile."""
    path = platform.folder / "blobs" / digest[:2] / digest
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    try:
        yield
    finally:
        path.write_bytes(data)


def judged(platform: Platform, files: dict[str, str], **parameters: Any) -> dict[str, Any]:
    """Train a version, wait until the gate has decided, and give it."""
    ended = platform.run(files, parameters=parameters)
    assert ended["status"] == "Succeeded", ended
    number = platform.call("GET", "/api/models/boxes")["last_version"]
    path = f"/api/models/boxes/versions/{number}"
    over = ("Passed", "Refused", "Failed")
    until(lambda: any(e["status"] in over for e in platform.call("GET", path)["evaluations"]), "the gate has judged")
    return dict(platform.call("GET", path))


def failed_rollout(platform: Platform, number: int) -> dict[str, Any]:
    def look() -> Any:
        rows = platform.call("GET", "/api/endpoints/boxes/rollouts")["items"]
        return next((row for row in rows if row["plan"]["number"] == number and row["status"] == "Failed"), None)

    return dict(until(look, f"the rollout of version {number} has failed"))


def live(platform: Platform) -> list[int]:
    return [item["version"] for item in platform.call("GET", "/api/live")["items"]]


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_a_version_with_a_flipped_bit_is_not_released_and_the_old_one_goes_on(
    platform: Platform, project_files: dict[str, str]
) -> None:
    serving = live(platform)
    version = judged(platform, project_files, shift=0.11)
    path = f"/api/models/boxes/versions/{version['number']}/approve"
    with flipped(platform, version["artifact"]["sha256"]):
        platform.call("POST", path, {"comment": "looks good"})
        row = failed_rollout(platform, version["number"])
        assert "digest" in row["reason"] or "damaged" in row["reason"], row["reason"]
        assert live(platform) == serving
        assert platform.predict({"size": 9.0}).status == 200
    platform.call("POST", "/api/endpoints/boxes/release", {"number": version["number"]})
    until(lambda: live(platform) == [version["number"]], "the mended version is live")


def test_a_step_whose_input_has_a_flipped_bit_fails_saying_so(
    platform: Platform, project_files: dict[str, str]
) -> None:
    asset = platform.call("GET", "/api/assets/boxes/boxes")
    with flipped(platform, asset["digest"]):
        answer = platform.ask("GET", "/api/assets/boxes/boxes/content")
        assert (answer.status, answer.error["code"]) == (500, "corrupt")
        tree = platform.call("GET", "/api/projects/boxes")["tree"]
        push = platform.call("POST", "/api/pushes", {"tree": tree, "parameters": {"shift": 0.12}, "cache": False})
        ended = platform.ended("push", push["id"])
        if ended["status"] == "Started":
            ended = platform.ended("execution", ended["execution"])
        assert ended["status"] in ("Failed", "Rejected")
        assert asset["digest"][:12] in ended["reason"] or "digest" in ended["reason"], ended["reason"]
    assert platform.run(project_files, parameters={"shift": 0.12}, cache=False)["status"] == "Succeeded"


def test_a_version_whose_code_cannot_be_imported_is_stopped_by_the_gate_and_by_its_start(
    platform: Platform, project_files: dict[str, str]
) -> None:
    serving = live(platform)
    broken = "import nowhere_to_be_found\n" + project_files["predict.py"]
    version = judged(platform, {**project_files, "predict.py": broken}, shift=0.13)
    evaluation = version["evaluations"][-1]
    assert evaluation["status"] == "Failed" and "nowhere_to_be_found" in evaluation["reason"], evaluation
    path = f"/api/models/boxes/versions/{version['number']}/approve"
    assert platform.ask("POST", path, {"comment": "please"}).error["code"] == "gate_refused"
    platform.call("POST", path, {"force": True, "reason": "a test of the second line"})
    row = failed_rollout(platform, version["number"])
    assert "nowhere_to_be_found" in row["reason"], row["reason"]
    assert live(platform) == serving
    assert platform.predict({"size": 9.0}).status == 200
    platform.call("POST", f"/api/models/boxes/versions/{version['number']}/reject", {"comment": "was a test"})


# -- ports and folders ------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_with_the_next_free_one(platform: Platform, tmp_path: Path) -> None:
    port = platform.host.rpartition(":")[2]
    told = platform.cli("up", "--dir", str(tmp_path / "other"), "--port", port)
    assert told.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in told.stderr
    free = int(told.stderr.partition("loopline up --port ")[2].split()[0])
    assert int(port) < free < 65536
    assert "Traceback" not in told.stderr
    assert platform.call("GET", "/api/health")


def test_a_second_server_on_the_same_folder_is_refused_naming_the_first(platform: Platform) -> None:
    told = platform.cli("up", "--dir", str(platform.folder), "--port", "0")
    assert told.returncode == 1
    assert f"pid {platform.pid}" in told.stderr and "already serves" in told.stderr, told.stderr
    assert platform.call("GET", "/api/health")


@pytest.mark.parametrize(
    ("text", "word"),
    [("port = 'x'\n", "port"), ("prot = 1\n", "prot"), ("port = \n", "TOML"), ("max_jobs = -1\n", "max_jobs")],
)
def test_settings_that_are_wrong_stop_the_start(platform: Platform, tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    told = platform.cli("up", "--dir", str(tmp_path))
    assert told.returncode == 2 and word in told.stderr and "settings.toml" in told.stderr, told
    assert "Traceback" not in told.stderr


def test_a_folder_that_is_a_file_stops_the_start(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = platform.cli("up", "--dir", str(tmp_path / "file"), "--port", "0")
    assert told.returncode in (1, 2), told
    assert "file" in told.stderr and "mistake in loopline" not in told.stderr, told.stderr


# -- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    place = tmp_path / "s"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take every last byte."""
    hog = place / "hog"
    with hog.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return hog


def refusals(platform: Platform) -> Callable[[], bool]:
    count = 0

    def look() -> bool:
        nonlocal count
        count += 1
        answer = platform.ask("POST", "/api/models", {"name": f"m{count}", "description": "x" * 100_000})
        assert answer.status in (201, 503), answer
        if answer.status == 503:
            assert answer.error["code"] == "unavailable", answer
            assert "disk" in answer.error["message"] or "space" in answer.error["message"], answer
        return answer.status == 503

    return look


def test_a_full_disk_is_told_and_nothing_is_half_written(small: Path, project_files: dict[str, str]) -> None:
    platform = Platform(small / "d")
    platform.start()
    try:
        assert platform.run(project_files)["status"] == "Succeeded"
        platform.call("POST", "/api/models/boxes/versions/1/approve", {"force": True, "reason": "a test"})
        until(lambda: live(platform) == [1], "version 1 is live")
        until(lambda: platform.predict({"size": 9.0}).status == 200, "the endpoint answers")
        hog = fill(small)
        until(refusals(platform), "the full disk is told")
        fill(small)
        for _ in range(50):
            assert platform.predict({"size": 9.0}).json == {"predictions": ["large"]}
        answer = platform.ask("PUT", "/api/assets/boxes/large?file=large.bin", b"y" * (4 << 20))
        assert (answer.status, answer.error["code"]) == (503, "unavailable"), answer
        answer = platform.ask("GET", "/api/models")
        assert answer.status == 200, answer  # reading goes on
        models = len(answer.json["items"])
        hog.unlink()
        until(lambda: platform.ask("POST", "/api/models", {"name": "after"}).status == 201, "it recovers by itself")
        assert len(platform.call("GET", "/api/models")["items"]) == models + 1
        assert platform.ask("GET", "/api/assets/boxes/large").status == 404
        assert not [
            path for path in (small / "d" / "blobs" / "tmp").iterdir() if time.time() - path.stat().st_mtime > 60
        ]
        assert platform.run(project_files, parameters={"shift": 0.2})["status"] == "Succeeded"
        until(lambda: platform.call("GET", "/api/audit/verify")["waiting"] == 0, "every event is chained")
        assert platform.call("GET", "/api/audit/verify")["valid"]
    finally:
        platform.stop()
