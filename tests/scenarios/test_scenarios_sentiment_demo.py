"""`make demo SYSTEM=sentiment` is a test, as a stranger runs it and as a person at a terminal does. It checks its own
figures."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopline.testing.live import processes_that_mention, until

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "sagemaker-sentiment" / "demo" / "run.py"
SDK = ROOT / ".clients" / "sagemaker2" / "bin" / "python"
STAGES = 10
LONGEST_SECONDS = 900
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
needs_sdk = pytest.mark.skipif(not SDK.exists(), reason="the SageMaker SDK is not there: make clients")


def environ(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPLINE_", "AWS_"))}
    return {**kept, "DEMO_DIR": str(folder), **more}


@needs_sdk
def test_the_scripts_of_the_document_run_from_the_first_model_to_the_way_back(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST_SECONDS,
        env=environ(folder, EXIT="1", SENTENCE="Nobody in the room wanted it to end."),
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    said = done.stdout
    assert done.stderr == "" and "\x1b" not in said
    headings = [int(line[:2]) for line in said.splitlines() if re.match(r"[ \d]\d  \S", line)]
    assert headings[:STAGES] == list(range(1, STAGES + 1))
    assert re.search(r"(positive|negative) 0\.\d\d +Nobody in the room wanted it to end\.", said)
    lists = ["版本 1: [Approved]", "版本 2: [Rejected]", "版本 3: [Approved]", "版本 3: [Rejected]"]
    places = [said.find(line) for line in lists]
    assert -1 not in places and places == sorted(places)
    assert "版本 2: [PendingManualApproval]; nothing is deployed" in said
    assert re.search(r"mlops-sentiment-high-error-rate: \w+ -> ALARM after \d+ s, told by SNS", said)
    assert "v3 rejected, v1 approved again and serves" in said
    assert not re.search(r"SECRET|lk_|LLAK", said)  # no key is shown
    until(lambda: not processes_that_mention(folder), f"nothing runs any more: {processes_that_mention(folder)}")


class Terminal:
    """A person at a terminal: what the demo shows, and what is typed."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.shown = ""
        self.read = 0
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)

    def sees(self, text: str) -> str:
        """Read on until this text is shown; gives what was shown until then since the last time."""
        end = time.monotonic() + LONGEST_SECONDS
        while (found := self.shown.find(text, self.read)) < 0:
            assert time.monotonic() < end, f"{text!r} is not shown: {self.shown[-3000:]}"
            if select.select([self._ours], [], [], 1.0)[0]:
                try:
                    piece = os.read(self._ours, 65536)
                except OSError:  # the other end is closed: that is how a terminal ends
                    piece = b""
                assert piece, f"it ended before it showed {text!r}: {self.shown[-3000:]}"
                self.shown += ANSI.sub("", piece.decode(errors="replace")).replace("\r\n", "\n")
        begin, self.read = self.read, found + len(text)
        return self.shown[begin : self.read]

    def types(self, line: str) -> None:
        """A line, as the keyboard gives it."""
        os.write(self._ours, line.encode() + b"\n")

    def interrupts(self) -> int:
        """Ctrl-C; gives the exit code."""
        self.process.send_signal(signal.SIGINT)
        while True:
            try:
                if not os.read(self._ours, 65536):
                    break
            except OSError:
                break
        return self.process.wait(LONGEST_SECONDS)


@needs_sdk
def test_a_person_types_sentences_and_every_new_version_stops_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    terminal = Terminal([sys.executable, str(DEMO)], environ(folder, INTERACTIVE="1", TERM="xterm"))
    prompt = "(Enter goes on):"
    terminal.sees(prompt)
    terminal.types("这部电影让我想起了童年。")
    assert re.search(r"(positive|negative) [01]\.\d\d  这部电影让我想起了童年。", terminal.sees(prompt))
    terminal.types("")
    question = "Approve mlops-sentiment-model-group v{}, accuracy"
    shown = terminal.sees(question.format(2))
    assert "版本 2: [PendingManualApproval]; nothing is deployed" in shown
    terminal.types("n")
    terminal.sees("版本 2: [Rejected]")
    shown = terminal.sees(question.format(3))
    assert "版本 3: [PendingManualApproval]; nothing is deployed" in shown
    terminal.types("maybe")
    terminal.sees(question.format(3))
    terminal.types("y")
    terminal.sees("版本 3: [Approved]")
    terminal.sees("mlops-sentiment-endpoint serves mlops-sentiment-v3")
    assert terminal.interrupts() == 130
    until(lambda: not processes_that_mention(folder), f"nothing runs any more: {processes_that_mention(folder)}")
