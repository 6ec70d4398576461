"""`make examples` plays every example and says which failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 120


def test_examples_are_played_one_by_one_and_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text((ROOT / "examples" / "run.py").read_text())
    programs = {
        "good/run.py": "import os; print('done in', os.environ['DEMO_DIR'][-8:], os.environ['EXIT'])",
        "better/demo/run.py": "print('first'); print('last')",
        "bad/run.py": "import sys; print('what went wrong'); sys.exit(3)",
        "shared/screen.py": "",
    }
    for path, text in programs.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)

    def play(*names: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, str(tmp_path / "run.py"), *names]
        kept = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS, env=kept)

    done = play()
    lines = [re.sub(r" +", " ", line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [re.sub(r"[\d.]+ s", "T", line) for line in lines] == [
        "bad FAILED (3) T what went wrong",
        "better ok T last",
        "good ok T done in platform 1",
    ]
    assert "what went wrong" in done.stderr and "printed.txt" in done.stderr
    assert play("good", "better").returncode == 0
    unknown = play("none")
    assert unknown.returncode == 2 and "there are bad, better, good" in unknown.stderr
