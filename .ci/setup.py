"""Set up .venv from the lock files, and say what that cost.

    python3 .ci/setup.py runtime STAMP     what loopline needs to run
    python3 .ci/setup.py dev STAMP         the developers' tools on top
    python3 .ci/setup.py wheels STAMP FILE put FILE's packages into uv's cache: later environments need no network
    python3 .ci/setup.py client FILE       put FILE's packages into an environment of their own, .clients/NAME
    python3 .ci/setup.py lock [--upgrade]  rewrite requirements.lock and requirements-dev.lock

Every package is installed by hash. loopline itself is entered by a .pth file, so nothing is built.
Standard library only: it runs before anything is installed.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
OLDEST = (3, 11)
COMPILE = [
    *("--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"),
]
QUIET_PIP = ("install", "--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check")
NOT_IN_A_LOCK = re.compile(r"://|^\s*(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)\b| @ ", re.M)

LAUNCHER = """#!/bin/sh
'''exec' '{python}' "$0" "$@"
' '''
import sys

from loopline.cli import main

sys.exit(main())
"""


def run(*argv, **options):
    """Run a command; its output is shown only when it fails."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nfailed ({done.returncode}): {' '.join(map(str, argv))}")
    return done.stdout


def interpreter():
    """This interpreter when it is new enough, else the newest one on PATH that is."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in range(20, OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.call([found, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            return found
    sys.exit(
        "loopline needs Python 3.11 or newer; python3 here is {}.{}.\n"
        "    apt-get install python3.11 python3.11-venv     # or newer, where your release has it\n"
        "or name one: make PYTHON=/path/to/python3.12 ...".format(*sys.version_info[:2])
    )


def create_venv():
    python = interpreter()
    done = subprocess.run([python, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        said = (done.stdout + done.stderr).strip()
        if "ensurepip" in said or "No module named venv" in said:
            sys.exit(
                "python3 on this machine cannot make virtual environments. Debian and Ubuntu ship that apart:\n"
                "    apt-get install python3-venv\nthen run make again."
            )
        sys.exit(f"{said}\n{python} -m venv {VENV} failed")


def pinned(lock, name):
    """The lines of one package in a lock file, hashes included."""
    found = re.search(rf"^{re.escape(name)}==.*?(?=^\S|\Z)", lock.read_text(), re.M | re.S)
    if not found:
        sys.exit(f"{lock.name} does not pin {name}")
    return found.group(0)


def ensure_uv():
    """uv in .venv, in the version and with a hash that the lock names."""
    pin = pinned(RUNTIME_LOCK, "uv")
    wanted = re.match(r"uv==([^\s;\\]+)", pin).group(1)
    if UV.exists() and run(UV, "--version").split()[1] == wanted:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as only_uv:
        only_uv.write(pin)
        only_uv.flush()
        pip(*QUIET_PIP, "-r", only_uv.name)


def pip(*argv):
    """Run pip, which comes back with the interpreter's own wheel where it was removed."""
    if not any((VENV / "lib").glob("python3.*/site-packages/pip")):
        run(PYTHON, "-m", "ensurepip")
    run(PYTHON, "-m", "pip", *argv)


def remove_installers():
    """Take out what a new venv brings and nothing here needs once uv is in it: 20 MB."""
    run(UV, "pip", "uninstall", "--quiet", "--python", PYTHON, "pip", "setuptools")


def install(lock, exact):
    """Install a lock by hash. `exact` also removes what the lock does not name."""
    verb = ["sync"] if exact else ["install", "--no-deps", "-r"]
    argv = [str(UV), "pip", *verb, str(lock), "--require-hashes", "--quiet", "--python", str(PYTHON)]
    if uv_installs(argv):
        remove_installers()
        return
    print("trying pip", file=sys.stderr)
    pip(*QUIET_PIP, "-r", lock)


def uv_installs(argv):
    """Whether uv could. Some machines trust their proxy in the system's store only, others have told only pip."""
    said = []
    for more in ([], ["--system-certs"]):
        done = subprocess.run([*argv, *more], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return True
        said.append(done.stderr.strip())
    print(f"{said[0]}\nuv could not install", file=sys.stderr)
    return False


def enter_loopline():
    """Put src/ on the path of .venv and the `loopline` command in its bin/."""
    site = next((VENV / "lib").glob("python3.*")) / "site-packages"
    (site / "loopline.pth").write_text(f"{ROOT / 'src'}\n")
    command = VENV / "bin" / "loopline"
    command.write_text(LAUNCHER.format(python=PYTHON))
    command.chmod(0o755)


def measure(folder):
    """(packages, bytes of all files, hard links once) of everything installed below `folder`."""
    packages = sum(1 for _ in folder.glob("lib/python3.*/site-packages/*.dist-info"))
    size, seen = 0, set()
    for parent, _, names in os.walk(folder):
        for name in names:
            stat = Path(parent, name).lstat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                size += stat.st_size
    return packages, size


def report(what, started, before, after):
    packages, size = after[0] - before[0], after[1] - before[1]
    print(f"{what}: {packages} packages, {size / 1e6:.0f} MB, {time.monotonic() - started:.1f} s", flush=True)


def set_up(what, stamp):
    started = time.monotonic()
    before = measure(VENV) if VENV.exists() else (0, 0)
    if not PYTHON.exists():
        create_venv()
    ensure_uv()
    install(DEV_LOCK if what == "dev" else RUNTIME_LOCK, exact=what == "dev")
    enter_loopline()
    after = measure(VENV)
    mark_done(what, stamp)
    report("set up " + ("developers' tools" if what == "dev" else "runtime"), started, before, after)


def mark_done(what, stamp):
    stamp.parent.mkdir(exist_ok=True)
    for old in stamp.parent.glob(f"{what}-*"):
        old.unlink()
    stamp.touch()


def fill_cache(stamp, requirements):
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loopline-wheels-") as folder:
        target = Path(folder, "lib", "python3.x", "site-packages")
        argv = [UV, "pip", "install", "--quiet", "--python", PYTHON, "--target", target, "-r", requirements]
        if not uv_installs([str(word) for word in argv]):
            sys.exit(f"the packages of {requirements} could not be fetched")
        report(f"wheels of {requirements}", started, (0, 0), measure(Path(folder)))
    mark_done(stamp.name.split("-")[0], stamp)


def set_up_client(requirements):
    """An environment for a client that tests drive loopline with; one whose file has not changed is left.

    requirements: NAME.txt for packages of Python, NAME/package.json for those of node, where there is npm.
    NAME.overrides, where there is one, takes the place of what these packages say that they need.
    """
    of_node = requirements.name == "package.json"
    name = requirements.parent.name if of_node else requirements.stem
    started, folder = time.monotonic(), ROOT / ".clients" / name
    overrides = requirements.with_suffix(".overrides")
    options = ["--overrides", overrides] if overrides.exists() else []
    stamp, wanted = folder / "installed", requirements.read_text() + (overrides.read_text() if options else "")
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if of_node and not shutil.which("npm"):
        print(f"client {name}: there is no npm", file=sys.stderr)
        return
    if of_node:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        run("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", cwd=folder)
    else:
        run(UV, "venv", "--quiet", "--clear", "--python", PYTHON, folder)
        argv = [UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python", *options, "-r", requirements]
        if not uv_installs([str(word) for word in argv]):
            sys.exit(f"the packages of {requirements} could not be fetched")
    stamp.write_text(wanted)
    packages, size = measure(folder)
    packages = packages or sum(1 for _ in folder.glob("node_modules/**/package.json"))
    report(f"client {name}", started, (0, 0), (packages, size))


def lock(upgrade):
    options = [*COMPILE, *(["--upgrade"] if upgrade else [])]
    run(UV, "pip", "compile", *options, "pyproject.toml", "-o", RUNTIME_LOCK.name, cwd=ROOT)
    run(
        *(UV, "pip", "compile", *options, "pyproject.toml", "--group", "dev"),
        *("-c", RUNTIME_LOCK.name, "-o", DEV_LOCK.name),
        cwd=ROOT,
    )
    for written in (RUNTIME_LOCK, DEV_LOCK):
        text = written.read_text()
        if NOT_IN_A_LOCK.search(text):
            sys.exit(f"{written.name} names a place to download from; that belongs to the machine, not to the lock")
        print(f"{written.name}: {text.count('==')} pins, {text.count('--hash=')} hashes")


def main(argv):
    # Two makes in one tree take turns; the second finds the stamp of the first.
    with (ROOT / ".ci" / ".setup.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if argv[0] in ("runtime", "dev"):
            stamp = ROOT / argv[1]
            if not stamp.exists():
                set_up(argv[0], stamp)
        elif argv[0] == "wheels":
            fill_cache(ROOT / argv[1], argv[2])
        elif argv[0] == "client":
            set_up_client(Path(argv[1]))
        elif argv[0] == "lock":
            lock("--upgrade" in argv)
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:] or ["help"])
