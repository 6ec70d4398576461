"""A program's process: what it sees where it may have mounts of its own, and where it may not."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.runtime import launch, mounts, sandbox, scripts

PROGRAM = """
import json, os, pathlib
found = {name: value for name, value in os.environ.items() if name.startswith("SM_") or name == "SAGEMAKER_BASE_DIR"}
found["config"] = json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "hyperparameters.json").read_text())
found["opt"] = os.path.exists("/opt/ml")
found["hosts"] = pathlib.Path("/etc/hosts").read_text()
pathlib.Path(os.environ["SM_MODEL_DIR"], "found.json").write_text(json.dumps(found))
print("loss: 0.5")
print("loss: nan-ish")
print("loss: 0.25")
"""


def spec_of(folder: Path, program: str, **more: Any) -> dict[str, Any]:
    """An attempt's folder as control lays it out, and its spec."""
    (folder / "inputs" / "0" / "content").mkdir(parents=True)
    (folder / "inputs" / "0" / "content" / "train.py").write_text(program)
    for name in ("work", "outputs", "tmp"):
        (folder / name).mkdir()
    for name in ("events", "outputs.json"):
        (folder / name).touch()
    call = {
        "contract": "training",
        "name": "job",
        "program": "train.py",
        "entrypoint": [],
        "words": ["--last", "/opt/ml/model"],
        "hyperparameters": {"depth": "3", "name": "big", "sagemaker_region": '"us-east-1"', "x": "[1, 2]"},
        "channels": [],
        "input_config": {},
        "processing_config": None,
        "outputs": {},
        "metrics": [["loss", "loss: (.*)"]],
        "hosts": 1,
        "machine": "ml.m5.large",
        "warnings": [],
        "laid": [{"host": 0, "to": "code", "channel": None}],
        "inputs": {"0": str(folder / "inputs" / "0" / "content")},
        **more,
    }
    return {
        "attempt": "at_one",
        "kind": "script",
        "python": sys.executable,
        "workdir": str(folder / "work"),
        "environ": {},
        "limits": {},
        "sandbox": {"read": [], "write": [], "network": True},
        "call": call,
    }


def run(folder: Path, spec: dict[str, Any]) -> tuple[int, str]:
    """The exit code and the output of a script in a process of its own, as the shim forks it."""
    log = folder / "log"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(os.open("/dev/null", os.O_WRONLY), launch.REPORT)
            sandbox.forbid_new_privileges()
            code = scripts.main(str(folder), spec)
        except scripts.AlgorithmError as failure:
            os.write(1, f"failed: {failure}\n".encode())
            code = 1
        except BaseException:
            os.write(1, traceback.format_exc().encode())
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), log.read_text()


def found_in(folder: Path) -> dict[str, Any]:
    """What the program wrote about itself."""
    loaded: dict[str, Any] = json.loads((folder / "work" / "algo-1" / "ml" / "model" / "found.json").read_text())
    return loaded


def test_a_program_has_opt_ml_and_hosts_of_its_own(tmp_path: Path) -> None:
    code, log = run(tmp_path, spec_of(tmp_path, PROGRAM))

    assert code == 0, log
    found = found_in(tmp_path)
    assert (found["SM_MODEL_DIR"], found["opt"], "SAGEMAKER_BASE_DIR" in found) == ("/opt/ml/model", True, False)
    assert "127.0.0.1 algo-1" in found["hosts"]
    assert json.loads(found["SM_USER_ARGS"]) == ["--depth", "3", "--name", "big", "-x", "[1, 2]"]
    assert json.loads(found["SM_HPS"]) == {"depth": 3, "name": "big", "x": [1, 2]}
    assert (found["SM_HP_DEPTH"], found["SM_HP_NAME"]) == ("3", "big")
    assert json.loads(found["SM_TRAINING_ENV"])["hyperparameters"]["depth"] == 3
    assert not Path("/opt/ml").exists()
    report = json.loads((tmp_path / "outputs.json").read_text())["report"]["value"]
    assert (report["metrics"], report["warnings"]) == ({"loss": 0.25}, [])
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["value"] for event in events if event["kind"] == "metric"] == [0.5, 0.25]


def test_without_mounts_the_variables_say_where_its_folders_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mounts, "detach", refuse)
    code, log = run(tmp_path, spec_of(tmp_path, PROGRAM))

    assert code == 0, log
    found = found_in(tmp_path)
    base = f"{tmp_path}/work/algo-1/ml"
    assert (found["SAGEMAKER_BASE_DIR"], found["SM_MODEL_DIR"], found["opt"]) == (base, f"{base}/model", False)
    warnings = json.loads((tmp_path / "outputs.json").read_text())["report"]["value"]["warnings"]
    assert len(warnings) == 1 and "Operation not permitted" in warnings[0] and warnings[0] in log


def test_a_program_reaches_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    folder = tmp_path / "attempt"
    folder.mkdir()
    places = [str(tmp_path / "secret"), f"{folder}/exit", "/opt/new", "/etc/new", "/tmp/new"]
    program = f"""
for path in {places!r}:
    for mode in "ra":
        try:
            open(path, mode).close()
            print("opened", path, mode)
        except OSError:
            pass
"""
    code, log = run(folder, spec_of(folder, program))

    assert (code, log) == (0, "")


def test_a_program_has_a_folder_for_what_it_forgets(elsewhere: Path) -> None:
    (Path(tempfile.gettempdir()) / f"{elsewhere.name}-mark").touch()
    program = "import os, tempfile\nprint(os.listdir('/tmp'), tempfile.gettempdir())\nopen('/tmp/mine', 'w').close()"
    code, log = run(elsewhere, spec_of(elsewhere, program))

    assert (code, log) == (0, "[] /tmp\n")
    assert not Path("/tmp/mine").exists()
    (Path(tempfile.gettempdir()) / f"{elsewhere.name}-mark").unlink()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that is not below /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_a_signal_is_told_from_a_failure(tmp_path: Path) -> None:
    code, log = run(tmp_path, spec_of(tmp_path, "import os\nos.kill(os.getpid(), 9)"))

    assert (code, log.strip()) == (1, "failed: killed by signal 9")


def test_one_host_that_fails_ends_the_job(tmp_path: Path) -> None:
    program = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(4)\nwhile True: time.sleep(0.1)"
    spec = spec_of(tmp_path, program, hosts=2)
    second = tmp_path / "inputs" / "1" / "content"
    second.mkdir(parents=True)
    (second / "train.py").write_text(program)
    spec["call"]["laid"].append({"host": 1, "to": "code", "channel": None})
    spec["call"]["inputs"]["1"] = str(second)

    code, log = run(tmp_path, spec)

    assert (code, log.strip()) == (1, "failed: exit code: 4")
    for path in Path("/proc").iterdir():  # the shim would: here nobody else ends the other host
        if path.name.isdigit() and str(tmp_path).encode() in _read(path / "environ"):
            os.kill(int(path.name), 9)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_installs_packages_says_that_they_are_there(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "")
    spec["call"]["entrypoint"] = [
        "/bin/sh",
        "-c",
        "pip install -r requirements.txt && python3 -m pip install -r requirements.txt && ! pip3 install other",
    ]

    code, log = run(tmp_path, spec)

    assert code == 0, log
    assert log.count("list them in requirements.txt") == 3
