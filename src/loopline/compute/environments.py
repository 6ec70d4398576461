"""The environments that user code runs in: resolved once, built once with uv, found by the digest of their lock.

An environment is always a virtual environment of its own, never loopline's, and nothing is built in place: it appears
under its name when it is whole.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uv
from packaging.requirements import InvalidRequirement, Requirement

from loopline.compute.subprocess import RUNTIME
from loopline.config import package_environment
from loopline.errors import InvalidInput, Timeout, Unavailable

KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
RECORD = "loopline-environment.json"
OUTPUT_LINES = 20
MAX_REQUIREMENTS_BYTES = 1024 * 1024
_SOURCES = (
    "UV_FIND_LINKS",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_CONSTRAINT",
    "UV_BUILD_CONSTRAINT",
    "UV_OVERRIDE",
)
# What uv says when it cannot reach an index; then its cache may still know enough.
UNREACHABLE = re.compile(r"error sending request|dns error|failed to fetch|timed out|connect|network", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment on disk. ``lock_hash`` is its name; ``seconds`` is how long its build took."""

    path: Path
    python: Path
    lock_hash: str
    seconds: float
    size_mb: float


def parse_requirements(text: str) -> list[str]:
    """The requirements of a requirements.txt, normalised, in the order given.

    Raises InvalidInput with the line's number and a cure for anything but ``name[extra] specifier ; marker``.
    """
    if len(text.encode()) > MAX_REQUIREMENTS_BYTES:
        raise InvalidInput("requirements.txt is larger than 1 MiB")
    found = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if line:
            found.append(_parse_line(number, line))
    return found


def _parse_line(number: int, line: str) -> str:
    where = f"requirements.txt, line {number}: "
    if line.startswith(("-e", "--editable")):
        raise InvalidInput(f"{where}editable installs are not possible; put the code into the project itself")
    if line.startswith("-"):
        raise InvalidInput(
            f"{where}options are not read; leave {line.split(maxsplit=1)[0]} away, an administrator sets the index"
        )
    if line.endswith("\\") or " --hash" in line:
        raise InvalidInput(f"{where}one requirement a line, without hashes; loopline locks and hashes them itself")
    if (
        "://" in line.split(";", maxsplit=1)[0]
        or line.startswith((".", "/", "~"))
        or re.search(r"\.(whl|zip|tar\.gz)\b", line)
    ):
        raise InvalidInput(f"{where}URLs and files are not installed; name a package and a version, as in numpy==2.4.0")
    try:
        requirement = Requirement(line)
    except InvalidRequirement as failure:
        reason = str(failure).splitlines()[0]
        raise InvalidInput(f"{where}{reason}; write a package and a version, as in numpy==2.4.0") from failure
    if requirement.url:
        raise InvalidInput(f"{where}URLs and files are not installed; name a package and a version, as in numpy==2.4.0")
    return str(requirement)


class Environments:
    """Locks and builds environments below ``folder``; ``build_seconds`` bounds one run of uv."""

    def __init__(self, folder: Path, *, build_seconds: float = 1800.0) -> None:
        self.folder = folder.absolute()
        self.build_seconds = build_seconds
        self.uv = uv.find_uv_bin()
        self._locks = self.folder / "locks"
        self._locks.mkdir(parents=True, exist_ok=True, mode=0o700)

    def lock(self, requirements_text: str, python: str | None = None, *, refresh: bool = False) -> str:
        """Every package of the environment with version and hashes; "" when nothing is required.

        A text that was locked before keeps its lock, without any network, unless ``refresh``. ``python`` is a path of
        an interpreter, or None for the one that loopline runs on. Raises InvalidInput where the requirements are
        wrong or contradict one another, Unavailable where no index can be reached.
        """
        requirements = parse_requirements(requirements_text)
        if not requirements:
            return ""
        base = self.interpreter(python)
        stored = self._locks / f"{_digest('lock', *requirements, _target(base))}.txt"
        if stored.is_file() and not refresh:
            return stored.read_text()
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".lock-") as scratch:
            source = Path(scratch) / "requirements.in"
            source.write_text("\n".join(requirements) + "\n")
            result = Path(scratch) / "requirements.txt"
            options = ["--generate-hashes", "--no-header", "--no-annotate"]
            command = ["pip", "compile", *options, "--quiet", "--python", str(base), "-o", str(result), str(source)]
            self._run(command, Path(scratch))
            text = result.read_text()
        _replace(stored, text)
        return text

    def key(self, lock: str, python: str | None = None) -> str:
        """The name of the environment of a lock: SHA-256 over the lock, the version of Python and the platform."""
        return _digest("environment", lock, _target(self.interpreter(python)))

    def find(self, key: str) -> Environment | None:
        """The environment of that name, if it was built."""
        path = self._path(key)
        try:
            record = json.loads((path / RECORD).read_text())
            return Environment(path, path / "bin" / "python", key, float(record["seconds"]), float(record["size_mb"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def build(self, key: str, lock: str, python: str | None = None) -> Environment:
        """The environment of a lock, built if it is not there. Builders of the same one wait for each other.

        A build that fails leaves nothing. Raises as ``lock`` does, and Timeout.
        """
        if key != self.key(lock, python):
            raise InvalidInput("the key does not belong to this lock")
        present = self.find(key)
        if present is not None:
            return present
        with self._alone(key):
            return self.find(key) or self._build(key, lock, self.interpreter(python))

    def remove(self, key: str) -> None:
        """Delete an environment; whoever uses it has to have ended."""
        path = self._path(key)
        with self._alone(key):
            if path.exists():
                grave = Path(tempfile.mkdtemp(dir=self.folder, prefix=".old-"))
                path.rename(grave / "environment")
                shutil.rmtree(grave)

    def interpreter(self, python: str | None) -> Path:
        """The base interpreter that environments are made from; never one inside loopline's own environment."""
        if python is None:
            # From inside a virtual environment only this private name leads to the interpreter it was made from.
            return Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        path = Path(python)
        if not path.is_absolute() or not os.access(path, os.X_OK):
            raise InvalidInput(f"there is no interpreter at {python}")
        return path

    def _build(self, key: str, lock: str, base: Path) -> Environment:
        began = time.monotonic()
        for left in self.folder.glob(f".{key}-*"):  # of a builder that was killed: this one holds the lock now
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{key}-"))
        try:
            target = scratch / "environment"
            # Relocatable, because it is moved to its name when it is whole.
            self._run(["venv", "--quiet", "--relocatable", "--no-project", "--python", str(base), str(target)], scratch)
            if lock:
                self._install(target, lock, scratch)
            size_mb = round(_size_bytes(target) / 1048576, 1)
            seconds = round(time.monotonic() - began, 3)
            record = {"key": key, "seconds": seconds, "size_mb": size_mb, "built_at": time.time()}
            (target / "loopline-lock.txt").write_text(lock)
            (target / RECORD).write_text(json.dumps(record))
            target.rename(self._path(key))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Environment(self._path(key), self._path(key) / "bin" / "python", key, seconds, size_mb)

    def _install(self, target: Path, lock: str, scratch: Path) -> None:
        """Install exactly the lock. Byte code is compiled now, because jobs may not write here later."""
        source = scratch / "requirements.txt"
        source.write_text(lock)
        hashes = ["--require-hashes"] if "--hash=" in lock else []
        python = str(target / "bin" / "python")
        options = ["--quiet", "--compile-bytecode", "--link-mode", "hardlink", *hashes]
        self._run(["pip", "sync", *options, "--python", python, str(source)], scratch)

    def _run(self, arguments: list[str], scratch: Path) -> None:
        """Run uv; where no index can be reached, once more from its cache alone."""
        try:
            self._run_once([*arguments], scratch)
        except InvalidInput as failure:
            if not UNREACHABLE.search(failure.message):
                raise
            try:
                self._run_once([*arguments, "--offline"], scratch)
            except InvalidInput:
                raise Unavailable(
                    f"no package index could be reached, and the cache does not suffice\n{failure}"
                ) from None

    def _run_once(self, arguments: list[str], scratch: Path) -> None:
        """One run of uv, confined: packages without a wheel run code of their own while they are built."""
        environ = package_environment()
        environ |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "TMPDIR": str(scratch), "UV_NO_PROGRESS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-I", str(RUNTIME / "confined.py"), *self._allowed(scratch), "--", self.uv, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",  # uv obeys the pyproject.toml and uv.toml of every folder above it: of whose project is that?
            env=environ,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.build_seconds)
        except subprocess.TimeoutExpired:
            raise Timeout(f"building the environment took longer than {self.build_seconds:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if process.returncode != 0:
            lines = output.decode(errors="replace").strip().splitlines()[-OUTPUT_LINES:]
            raise InvalidInput("\n".join(["uv could not make the environment:", *lines]))

    def _allowed(self, scratch: Path) -> list[str]:
        """What a build may write and read besides the system: its own folder, uv's cache, uv's files at home."""
        home = Path.home()
        caches = package_environment().get("XDG_CACHE_HOME") or str(home / ".cache")
        cache = Path(package_environment().get("UV_CACHE_DIR") or f"{caches}/uv")
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
        read = [home / ".config" / "uv", home / ".local" / "share" / "uv", Path(self.uv).parent, *_local_indexes()]
        options = ["--write", str(scratch), "--write", str(cache)]
        for path in [*read, self.interpreter(None).parent.parent]:
            options += ["--read", str(path)]
        return options

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise InvalidInput("an environment's key is a SHA-256 in lower-case hex")
        return self.folder / key

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Hold the right to build or remove one environment; the kernel gives it back when this process dies."""
        self._path(key)
        descriptor = os.open(self._locks / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _local_indexes() -> list[Path]:
    """Folders that an administrator named as package sources, and files of constraints."""
    found = []
    for name in _SOURCES:
        for part in re.split(r"[\s,]+", package_environment().get(name, "")):
            path = part.partition("=")[2] if "=file:" in part else part
            path = path.removeprefix("file://")
            if path.startswith("/"):
                found.append(Path(path))
    return found


def _target(base: Path) -> str:
    """What binary packages depend on: the implementation and version of Python, and the platform."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if base.resolve() == own:
        version = platform.python_version()
    else:
        script = "import platform; print(platform.python_version())"
        answer = subprocess.run(
            [str(base), "-I", "-S", "-c", script], capture_output=True, text=True, timeout=30, check=False, env={}
        )
        if answer.returncode != 0:
            raise InvalidInput(f"{base} is no Python interpreter")
        version = answer.stdout.strip()
    return f"{sys.implementation.name}-{version}-{sysconfig.get_platform()}"


def _digest(*parts: str) -> str:
    """SHA-256 over parts, each with its length, so that no two lists of parts read the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    temporary.write_text(text)
    temporary.replace(path)


def _size_bytes(folder: Path) -> int:
    """The space of all files below a folder, hard links into the cache included."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(root, name)).st_blocks * 512  # noqa: PTH118 - tens of thousands
    return total
