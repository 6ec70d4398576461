"""A version leaves: the exported folder answers by hand as the endpoint does, without loopline."""

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.testing import boxes
from loopline.testing.live import Platform, until

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
# It imports the project's pipeline, and with it the marks of loopline; a size of 13 is too much for it.
PREDICT = boxes.PREDICT.replace("import json\n", "import json\nimport pipeline\n", 1).replace(
    "    return [",
    """    if any(row.get("size") == 13 for row in batch):
        raise ValueError("thirteen")
    return [""",
)
BODIES: list[tuple[str, bytes]] = [
    ("application/json", b'{"size": 0.2}'),
    ("application/json", b'{"instances": [{"size": 5}, {"size": -1}, {"size": 1.0}]}'),
    ("application/json", b'{"instances": []}'),
    ("application/json", b'{"size": 13}'),
    ("application/json", b'{"size": '),
    ("application/json", b'{"size": NaN}'),
    ("application/json", b'{"instances": 1}'),
    ("application/json", b'{"volume": 1}'),
    ("text/plain", b"x"),
    ("application/json", b"\xff"),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("live") / "data")
    running.start()
    try:
        assert running.run(boxes.project(loop_toml=LOOP, predict_py=PREDICT))["status"] == "Succeeded"
        until(lambda: running.ask("GET", "/api/endpoints/boxes").json.get("status") == "InService", "boxes serves", 60)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def exported(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "boxes"
    done = platform.cli("export", "boxes", "--docker", str(folder))
    assert done.returncode == 0, done.stderr
    assert "read" in done.stdout
    return folder


@pytest.fixture(scope="module")
def elsewhere(exported: Path) -> Iterator[str]:
    """The address of the exported server, run by hand in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(exported / ".venv")], check=True)
    python = str(exported / ".venv" / "bin" / "python")
    requirements = (exported / "requirements.txt").read_text()
    assert requirements.strip() == ""  # this project needs no package
    process = subprocess.Popen(
        [python, "server.py", "--port", "0"], cwd=exported, env={}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"serving at http://(127\.0\.0\.1:\d+)/invocations\n", said)
        assert found, said
        yield found[1]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def ask(address: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        assert answer.headers["x-request-id"]
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(("content_type", "body"), BODIES, ids=lambda value: str(value)[:40])
def test_it_answers_as_the_endpoint_does_errors_included(
    platform: Platform, elsewhere: str, content_type: str, body: bytes
) -> None:
    here = platform.predict(body, headers={"content-type": content_type})
    status, document = ask(elsewhere, "POST", "/invocations", body, **{"content-type": content_type})
    expected = here.json
    for each in (expected, document):
        if "error" in each:
            assert each["error"].pop("request_id")
    assert (status, document) == (here.status, expected)


def test_what_is_no_invocation_is_refused(elsewhere: str) -> None:
    assert ask(elsewhere, "GET", "/ping") == (200, {"status": "ok"})
    assert ask(elsewhere, "GET", "/invocations")[0] == 404
    assert ask(elsewhere, "POST", "/other", b"{}")[1]["error"]["code"] == "not_found"
    assert ask(elsewhere, "POST", "/invocations", b"x" * (7 << 20))[0] == 413


def test_the_folder_holds_what_serves_and_no_data(platform: Platform, exported: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if ".venv" not in path.parts}
    assert {"Dockerfile", "README.md", "server.py", "spec.json", "requirements.txt", "model/model.json"} <= names
    assert {"code/predict.py", "code/pipeline.py", "code/loop.toml"} <= names
    assert not any(name.startswith("code/data/") for name in names)
    assert not any("{{" in (exported / name).read_text() for name in ("Dockerfile", "README.md", "server.py"))
    again = platform.cli("export", "boxes:1", "--docker", str(exported))
    assert again.returncode != 0 and "exists and is not empty" in again.stderr
    events = platform.call("GET", "/api/events?noun=version&limit=100")["items"]
    assert [event["kind"] for event in events].count("exported") == 1


def test_the_dockerfile_copies_what_is_there_and_starts_the_server(exported: Path) -> None:
    """Read as a builder reads it: each instruction known, each source there, the server's own command last."""
    text = (exported / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == ["FROM", f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}
    assert {instruction for instruction, _ in lines} <= known
    sources = [rest.split()[0] for instruction, rest in lines if instruction == "COPY"]
    assert all((exported / source).exists() for source in sources) and sources[-1] == "."
    command = json.loads(lines[-1][1])
    assert lines[-1][0] == "CMD" and command[:2] == ["python", "server.py"]
    users = [place for place, (instruction, _) in enumerate(lines) if instruction == "USER"]
    copies = [place for place, (instruction, _) in enumerate(lines) if instruction in ("COPY", "RUN")]
    assert users and users[-1] > copies[-1]  # it does not run as root


def test_a_version_that_is_not_approved_does_not_leave(platform: Platform, tmp_path: Path) -> None:
    platform.call("POST", "/api/models/boxes/versions/1/copy", {"to": "boxes"})
    refused = platform.cli("export", "boxes:2", "--docker", str(tmp_path / "out"))
    assert refused.returncode == 3 and "not Approved" in refused.stderr
    assert not (tmp_path / "out").exists()
    forced = platform.cli("export", "boxes:2", "--docker", str(tmp_path / "out"), "--force", "--reason", "a trial")
    assert forced.returncode == 0, forced.stderr
