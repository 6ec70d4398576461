"""Every example, each on a fresh platform of its own: `make examples`.

    python examples/run.py [NAME ...]

One line each: whether it went as it should, its seconds, and the last line that it printed. Of one that fails the end
of what it printed follows, and where the rest stands. The exit code is the number of those that failed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = ("*/run.py", "*/demo/run.py")
SHOWN = 70  # characters of an example's last line
TAIL = 25  # lines of one that failed


def examples() -> dict[str, Path]:
    """{name: its program}."""
    found = [path for pattern in RUNS for path in HERE.glob(pattern)]
    return {path.relative_to(HERE).parts[0]: path for path in sorted(found)}


def play(name: str, program: Path, folder: Path) -> bool:
    """Run one to its end and say how it went."""
    log = folder / "printed.txt"
    folder.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOPLINE_", "MAKE"))}
    kept.pop("INTERACTIVE", None)
    environ = {**kept, "EXIT": "1", "DEMO_DIR": str(folder / "platform"), "TMPDIR": str(folder)}
    began = time.monotonic()
    with log.open("wb") as out:
        argv = [sys.executable, str(program)]
        code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environ)
    seconds = time.monotonic() - began
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = said[-1] if said else "it printed nothing"
    print(f"{name:<22}{'ok' if code == 0 else f'FAILED ({code})':<14}{seconds:7.1f} s  {last[:SHOWN]}", flush=True)
    if code:
        print("\n".join(f"    {line}" for line in said[-TAIL:]), file=sys.stderr)
        print(f"    all of it: {log}", file=sys.stderr, flush=True)
    return code == 0


def main(wanted: list[str]) -> int:
    """Play them one after the other; gives how many failed."""
    there = examples()
    unknown = [name for name in wanted if name not in there]
    if unknown:
        print(f"there is no example {', '.join(unknown)}; there are {', '.join(there)}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="loopline-examples-"))
    failed = [name for name in wanted or there if not play(name, there[name], folder / name)]
    if not failed:
        shutil.rmtree(folder)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
