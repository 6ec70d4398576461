"""The far side of a fork: set the process up, then become the job, or the model server.

A job's limits, privileges and Landlock are set here, and what goes wrong is told to the shim through the report pipe,
one JSON line each. A model server confines itself, as one that was started does.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH100, PTH119, PTH120, PTH123

import ctypes
import errno
import gc
import json
import os
import random
import signal
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from . import folder as files
from . import processes, sandbox

if TYPE_CHECKING:
    import socket

HERE = os.path.dirname(os.path.abspath(__file__))
MESSAGE_CHARS = 4000
TRACEBACK_CHARS = 16000
REPORT = 3  # the pipes of the job's process: to the shim,
GO = 4  # and from it
ADOPTED_SECONDS = 5.0
# How numeric libraries are told the number of their threads once they are loaded; before, it is the environment's.
THREAD_SETTERS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
    "MKL_Set_Num_Threads",
    "omp_set_num_threads",
)
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


def environment(spec: dict[str, Any], folder: str) -> dict[str, str]:
    """The job's whole environment: a minimum, what the spec says, and the mark. Nothing is inherited."""
    workdir = str(spec["workdir"])
    python = os.path.dirname(str(spec.get("python") or sys.executable))
    return {
        "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin",
        "HOME": workdir,
        "LANG": "C.UTF-8",
        "TMPDIR": f"{folder}/{files.SCRATCH}",
        "PYTHONUNBUFFERED": "1",
        **{str(name): str(value) for name, value in (spec.get("environ") or {}).items()},
        processes.MARK: str(spec["attempt"]),
    }


def become(shim: int, go: int, output: int, report: int) -> NoReturn:
    """Turn this freshly forked process into the job of the folder that is read from ``go``. Never returns.

    All that does not depend on the folder is done before it is known.
    """
    stage = "launch"
    code = 1
    try:
        _detach(shim, go, output, report)
        sandbox.forbid_new_privileges()
        common = sandbox.common_rules()
        folder, spec = _await_folder()
        if spec["kind"] == "script":  # it gives up its rights after it has made its mounts
            stage = "job"
            code = import_module(f"{__package__}.scripts").main(folder, spec)
        else:
            sandbox.drop_capabilities()
            _enter(folder, spec, common)
            stage = "job"
            code = _run(folder)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException as failure:  # noqa: BLE001 - the process ends here, and the shim has to learn why
        tell({"stage": stage, "errno": getattr(failure, "errno", None), "error": explain(failure)})
    finally:
        _leave(code)


def _enter(folder: str, spec: dict[str, Any], common: sandbox.Rules | None) -> None:
    """Confine this process and make it look like one that was started for the job; a command takes it over."""
    environ = environment(spec, folder)
    tree = (spec.get("call") or {}).get("tree")
    if tree and spec["kind"] != "command":
        import_module(f"{__package__}.compiled").compile_tree(str(tree))
    os.chdir(str(spec["workdir"]))
    tell({"layers": confine(folder, spec, common)})
    if spec["kind"] == "command":
        _execute([str(part) for part in spec["argv"]], environ)
    _settle(environ, folder)


def _detach(shim: int, go: int, output: int, report: int) -> None:
    """Leave what was the shim's: session, descriptors, signals. The pipes get the descriptors REPORT and GO."""
    os.setsid()
    sandbox.die_with_parent(shim, signal.SIGKILL)
    pipes = [os.dup(end) for end in (report, go)]  # away from the numbers that they are about to get
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(pipes[0], REPORT, inheritable=False)
    os.dup2(pipes[1], GO, inheritable=False)
    os.closerange(GO + 1, 1 << 30)  # a job that held the log itself could write past its cap
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _go_first_when_memory_ends()


def _await_folder() -> tuple[str, dict[str, Any]]:
    """Wait for the shim to name the attempt's folder; without one, it has no use for this process."""
    folder = os.read(GO, 65536).decode()
    os.close(GO)
    spec = files.read_json(folder, files.SPEC) if folder else None
    if spec is None:
        os._exit(1)
    return folder, spec


def _go_first_when_memory_ends() -> None:
    """When the machine runs out of memory, let the kernel take the job before the platform."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, b"500")
        os.close(descriptor)
    except OSError:
        return


def confine(folder: str, spec: dict[str, Any], common: sandbox.Rules | None) -> list[str]:
    """Limits, then Landlock, after the privileges are gone; returns the layers that hold."""
    wanted = spec.get("sandbox") or {}
    sandbox.limit(spec.get("limits") or {})
    own = [str(spec["workdir"]), *(f"{folder}/{name}" for name in (files.OUTPUTS, files.SCRATCH))]
    own += [f"{folder}/{name}" for name in (files.EVENTS, files.MANIFEST)]
    held = sandbox.confine(
        [folder, HERE, *map(str, wanted.get("read") or ())],
        [*own, *map(str, wanted.get("write") or ())],
        network=bool(wanted.get("network", True)),
        common=common,
    )
    return ["rlimits", "no_new_privs", "no_capabilities", *held]


def _execute(argv: list[str], environ: dict[str, str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so over exec
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvpe(argv[0], argv, environ)  # noqa: S606


def _settle(environ: dict[str, str], folder: str) -> None:
    """Make an interpreter that was forked look like one that was started for this job."""
    os.environ.clear()
    processes.overwrite_environ(f"{processes.MARK}={environ[processes.MARK]}".encode())
    os.environ.update(environ)
    sys.argv = [folder]
    # The runtime's own folder comes last: its file names must not hide a user's or a package's module.
    sys.path[0:0] = [entry for entry in environ.get("PYTHONPATH", "").split(":") if entry]
    sys.path.append(HERE)
    _freshen()


def _freshen() -> None:
    """What an interpreter that was started would have of its own: streams, `__main__`, collector, random numbers."""
    if "TZ" in os.environ:
        time.tzset()
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # A `__main__` without a file: a process that multiprocessing spawns must not run the shim's or forkserver's again.
    sys.modules["__main__"] = type(sys)("__main__")
    gc.enable()
    random.seed()
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
    generator = sys.modules.get("numpy.random.mtrand")
    if generator is not None:
        generator.seed()


def become_server(asking: "socket.socket", request: dict[str, Any]) -> NoReturn:
    """Turn this freshly forked orphan into the model server that ``request`` describes. Never returns.

    ``request``: the ``argv`` (interpreter, options, serve.py, its arguments), ``environ`` and ``cwd`` of the process
    that would be started otherwise, the ``log`` for its output, and the ``parent`` that adopts it. That one is told the
    pid and says ``go``; without it, this process ends.
    """
    code = 1
    try:
        parent = int(request["parent"])
        end = time.monotonic() + ADOPTED_SECONDS
        while os.getppid() != parent and time.monotonic() < end:
            time.sleep(0.0005)  # whoever forked us is about to end
        os.setpgid(0, 0)
        sandbox.die_with_parent(parent, signal.SIGTERM)
        asking.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
        if asking.recv(16) != b"go\n":
            os._exit(1)
        _detach_server(str(request["log"]))
        argv = [str(word) for word in request["argv"]]
        os.environ.clear()
        os.environ.update({str(name): str(value) for name, value in request["environ"].items()})
        os.chdir(str(request.get("cwd") or "/"))
        start = next(place for place, word in enumerate(argv) if word.endswith("serve.py"))
        sys.argv = argv[start:]
        _freshen()
        _limit_threads(os.environ.get("OMP_NUM_THREADS", ""))
        code = import_module(".serve", __package__).main(argv[start + 1 :])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as failure:  # noqa: BLE001 - the process ends here, and its log has to say why
        explain(failure)
    finally:
        _leave(code)


def _detach_server(log: str) -> None:
    """Output to the log, no descriptor of the forkserver's, signals as they were."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1 << 30)
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit_threads(text: str) -> None:
    """Tell the numeric libraries that are loaded already how many threads they may use."""
    if not text.isdigit() or int(text) < 1:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    for path in paths:
        name = os.path.basename(path).lower()
        if not any(part in name for part in ("blas", "mkl_rt", "gomp", "libomp", "iomp")):
            continue
        library = ctypes.CDLL(path)
        for setter in THREAD_SETTERS:
            function = getattr(library, setter, None)
            if function is not None:
                function(ctypes.c_int(int(text)))


def _run(folder: str) -> int:
    job = import_module(f"{__package__}.job")
    code = job.main(folder)
    return code if isinstance(code, int) else 0


def explain(failure: BaseException) -> dict[str, Any]:
    """An exception as the ``error`` of ``exit``: file and line are the deepest ones in user code."""
    import traceback

    frames = traceback.extract_tb(failure.__traceback__)
    shown = [frame for frame in frames if not frame.filename.startswith((HERE, "<frozen"))]
    text = "".join([*traceback.format_list(shown), *traceback.format_exception_only(failure)])
    if shown:
        text = "Traceback (most recent call last):\n" + text
    library = os.path.dirname(os.__file__)
    own = [frame for frame in shown if "site-packages" not in frame.filename and not frame.filename.startswith(library)]
    place = next(iter([*reversed(own), *reversed(shown)]), None)
    sys.stderr.write(text)
    return {
        "type": type(failure).__name__,
        "message": str(failure)[:MESSAGE_CHARS],
        "traceback": text[-TRACEBACK_CHARS:],
        "file": place.filename if place else None,
        "line": place.lineno if place else None,
    }


def tell(message: dict[str, Any]) -> None:
    """One line, shorter than a pipe's buffer, so that it never blocks."""
    os.write(REPORT, json.dumps(message).encode()[:60000] + b"\n")


def _leave(code: int) -> NoReturn:
    """End as an interpreter does, exit functions included, but without tearing the preloaded modules down."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing is left that could be told
        code = code or 1
    finally:
        os._exit(code & 0xFF)
