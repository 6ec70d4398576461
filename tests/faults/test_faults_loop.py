import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def report_of(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.stdout.strip(), done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, (document, done.stderr)
    return document


def test_loops_complete_by_themselves_after_kills() -> None:
    document = report_of("run.py", "--seed", "7", "--first", "3")
    assert document["hit"] == document["cells"] == 3
    assert document["violations"] == []
    assert document["answers"] > 0


def test_rollbacks_under_load_lose_no_request() -> None:
    document = report_of("rollouts.py", "--n", "2", "--connections", "16")
    assert document["rounds"] == 2
    assert (document["non_2xx"], document["wrong"]) == (0, 0)
    assert document["requests"] > 100
    assert document["rollback_max_seconds"] <= 1.0
