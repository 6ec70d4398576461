"""The example of credit scoring is a test: an endpoint, a function before it, FastAPI and an export score alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "credit-scoring"
LONGEST_SECONDS = 1200


def test_1000_applicants_get_the_same_score_from_endpoint_service_and_export(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOOPLINE_")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "run.py"), "--rows", "1000", "--dir", str(tmp_path / "credit")],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
        env=kept,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["rows"], result["different"], result["refused_alike"]) == (1000, 0, True)
    assert 0 < result["first"]["score"] < 1
    export = tmp_path / "credit" / "export"
    locked = (export / "requirements.txt").read_text()
    assert all(f"{name}==" in locked for name in ("joblib", "numpy", "pandas", "scikit-learn"))
    assert not list((export / ".venv").glob("lib/python3*/site-packages/loopline*"))
