import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def report_of(*command: str) -> dict[str, Any]:
    """How quick it is, they say on a machine of their own; here they say whether it is right."""
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "FAULTS_PATIENCE": "20"},
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


def test_bad_releases_leave_by_themselves_or_never_come() -> None:
    document = report_of("bad_releases.py", "--n", "22", "--only", "golden request wrongly", "--rate", "60")
    assert (document["releases"], document["left"], document["never_took_traffic"]) == (1, 1, 1)
    document = report_of("bad_releases.py", "--n", "22", "--only", "5xx on some rows", "--rate", "60")
    assert (document["releases"], document["left"]) == (1, 1)
    assert document["failed_by_bad"] > 0 and document["slowest_seconds_after_evidence"] <= document["limit_seconds"]
    assert (document["wrong"], document["non_2xx_of_good"], document["violations"]) == (0, 0, [])


def test_everything_at_once_under_load_loses_nothing_but_what_a_killed_server_had() -> None:
    document = report_of("soak.py", "--minutes", "0.3", "--rate", "60", "--control-seconds", "3", "--seed", "3")
    assert (document["wrong"], document["failed"], document["failed_without_control"]) == (0, 0, 0)
    assert document["requests"] > 60 * 10 and document["answers_without_control"] > 0
    assert document["done"]
