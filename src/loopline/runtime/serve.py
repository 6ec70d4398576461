"""The model server's process: load, warm up, then listen.

    python -I serve.py --spec FILE.json --socket PATH --status PATH

Started by path in the environment of the model's version, which does not have loopline installed. The status file says
``loading``, ``ready`` or ``failed`` with the reason. SIGTERM finishes what has arrived and exits 0.

User code runs confined: it reads the system, its environment, the model and the project, and writes to a scratch folder
beside the status file (``TMPDIR``). The socket is bound, and the status file opened, before the door is closed.
"""

import os
import sys

if not __package__:  # entered by path: see shim.py
    __package__ = "loopline_runtime"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
    sys.modules[__package__] = _package

import argparse
import contextlib
import faulthandler
import functools
import gc
import importlib.util
import json
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import accelerator, function, mounts, printed, sandbox
from .answers import ModelError
from .batches import DEFAULT_MAX_BATCH_ROWS, Answer, Batcher
from .listener import Listener
from .loading import CannotServe, load_model
from .signature import InputError, Signature

STATUS_BYTES = 4096
CONTAINER_ROOT = "/opt/ml"
Answerer = Callable[[Sequence[printed.Call]], list[Answer]]
PACKAGE = Path(__file__).resolve().parents[1]


def offer_package() -> None:
    """Make ``loopline`` importable for the project's code, without the folder around it.

    That folder may be the site-packages of loopline's own environment, whose packages must not be seen here.
    """
    if "loopline" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "loopline", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopline"] = module
    spec.loader.exec_module(module)


class Status:
    """The status file, and the datagram that tells control to look at it.

    The file is made by rename and then overwritten in one write of a constant size, because a confined process may not
    create files beside it.
    """

    def __init__(self, path: Path, identifier: str, wake: str | None) -> None:
        self._id = identifier
        self._wake = wake
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.say("loading")
        temporary.rename(path)

    def say(self, state: str, error: str | None = None) -> None:
        """Write the state; ``error`` is for a person, and cut where it is very long."""
        document = {"id": self._id, "pid": os.getpid(), "state": state, "error": error, "at": time.time()}
        text = json.dumps(document)
        while len(text) > STATUS_BYTES:
            document["error"] = error = (error or "")[: len(error or "") // 2]
            text = json.dumps(document)
        os.pwrite(self._descriptor, text.ljust(STATUS_BYTES).encode(), 0)
        if self._wake:
            message = json.dumps({"kind": "server", "id": self._id}).encode()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(message, self._wake)


def bind(path: Path) -> socket.socket:
    """A socket at ``path`` that refuses connections until it listens. Raises ``OSError``."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(path))
    return bound


def make_scratch(path: Path) -> None:
    """An empty private folder for temporary files, also those of libraries that look for a cache."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = os.environ["MPLCONFIGDIR"] = tempfile.tempdir = str(path)


def show_model(spec: dict[str, Any], scratch: Path) -> None:
    """Let an inference script find its model files at ``/opt/ml/model``, as in a container, where the kernel allows a
    process mounts of its own; it comes before the process gives up its rights."""
    if spec.get("handler") != "sagemaker" or not spec.get("model_dir"):
        return
    root = scratch / "ml"
    (root / "model").mkdir(parents=True, mode=0o700)
    try:
        mounts.detach()
        if Path(CONTAINER_ROOT).is_dir():
            mounts.show(str(root), CONTAINER_ROOT)
        else:
            mounts.show_below(str(root), CONTAINER_ROOT, str(scratch / "opt"))
        mounts.show(str(spec["model_dir"]), f"{CONTAINER_ROOT}/model")
    except OSError as error:
        print(f"[loopline] the model is not at {CONTAINER_ROOT}/model ({error}): model_fn is told where it is")


def confine(spec: dict[str, Any], scratch: Path) -> None:
    """Limits, no privileges, and only the files that serving needs."""
    sandbox.limit(spec.get("limits") or {})
    sandbox.forbid_new_privileges()
    sandbox.drop_capabilities()
    wanted = spec.get("sandbox") or {}
    read = [str(PACKAGE), str(spec["model_dir"]), *map(str, wanted.get("read") or ())]
    read += [str(place) for place in (spec.get("code_dir"), (spec.get("compiled") or {}).get("model_dir")) if place]
    write = [str(scratch), *map(str, wanted.get("write") or ())]
    sandbox.confine(read, write, network=bool(wanted.get("network", True)))


def make_batcher(spec: dict[str, Any], core: Any) -> Batcher:
    """Load the model and predict the warm-up rows. Raises ``CannotServe``.

    ``compiled`` {"handler", "model_dir"} names the model in a form that was found to answer the same, but faster. Where
    it does not load or does not predict, the model itself serves.
    """
    compiled = spec.get("compiled")
    if compiled:
        try:
            return _warm_batcher({**spec, **compiled, "code_dir": None}, core)
        except CannotServe as error:
            print(f"[loopline] the compiled model cannot be used, so the model itself serves: {error}", file=sys.stderr)
    return _warm_batcher(spec, core)


def _warm_batcher(spec: dict[str, Any], core: Any) -> Batcher:
    features = (spec.get("signature") or {}).get("features")
    try:
        signature = Signature(features) if features else None
    except (ValueError, KeyError, TypeError) as error:
        raise CannotServe(f"the signature cannot be used: {error}") from error
    batcher = Batcher(load_model(spec), signature, int(spec.get("max_batch_rows") or DEFAULT_MAX_BATCH_ROWS), core)
    try:
        batcher.warm_up(spec.get("warmup") or [])
    except (InputError, ModelError) as error:
        raise CannotServe(f"the warm-up prediction failed: {error}") from error
    return batcher


def make_answer(spec: dict[str, Any], core: Any, listener: Listener) -> Answerer:
    """What answers requests: a model, or a function, which may ask endpoints. Raises ``CannotServe``."""
    if spec.get("handler") == "function":
        return functools.partial(function.load(spec).answer, ask=listener.ask)
    return make_batcher(spec, core).answer


def serve(answer: Answerer, listener: Listener, status: Status, one_by_one: bool = False) -> int:
    """Listen and answer until SIGTERM; the process's exit code."""
    try:
        listener.listen()
    except OSError as error:
        status.say("failed", f"the server cannot listen: {error}")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: listener.stop())
    gc.collect()
    gc.freeze()  # a model's library has a hundred thousand objects that no collection need look at again
    status.say("ready")
    listener.serve(answer, one_by_one)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one model server; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--spec", "--socket", "--status"):
        parser.add_argument(option, type=Path, required=True)
    given = parser.parse_args(arguments)
    parent = os.getppid()
    sandbox.die_with_parent(parent, signal.SIGKILL)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    faulthandler.enable(file=2, all_threads=False)  # a model that crashes in compiled code says where
    printed.install()
    spec = json.loads(given.spec.read_text())
    status = Status(given.status, str(spec["id"]), spec.get("wake"))
    scratch = given.status.with_suffix(".tmp")
    memory_mb = float((spec.get("limits") or {}).get("memory_mb") or "inf")
    try:
        listener = Listener(bind(given.socket), parent, memory_mb)
        core = accelerator.load(spec.get("accelerator"))
        make_scratch(scratch)
        show_model(spec, scratch)
        confine(spec, scratch)
        offer_package()
        os.environ.update(spec.get("variables") or {})  # after the door was closed: they may lead an interpreter astray
        answer = make_answer(spec, core, listener)
    except (CannotServe, OSError) as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, CannotServe) else f"the server cannot be set up: {error}"
        status.say("failed", reason)
        return 1
    return serve(answer, listener, status, one_by_one=spec.get("handler") == "function")


if __name__ == "__main__":
    sys.exit(main())
