"""Serve one model from here, without a platform: a gateway and a model server, until Ctrl-C."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import loopline
from loopline.errors import Conflict, Forbidden, InvalidInput, NotFound, Timeout, Unavailable

READY_SECONDS = 120.0
LOOK_SECONDS = 0.05
NAME = "local"


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--trust", is_flag=True, help="Open FILE although that runs whatever code is in it.")
@click.option(
    "--local", "project", metavar="DIR", type=click.Path(path_type=Path), help="Serve DIR/predict.py instead."
)
@click.option(
    "--model-dir", type=click.Path(path_type=Path), help="The model files (default: of DIR's last local run)."
)
@click.option("--python", help="The interpreter to load the model with (default: python of the active environment).")
@click.option("--port", type=int, default=8601, show_default=True, help="The port; 0 takes a free one.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def serve(
    file: Path | None,
    trust: bool,
    project: Path | None,
    model_dir: Path | None,
    python: str | None,
    port: int,
    debug: bool,
) -> int:
    """Serve FILE (a joblib or pickle file), or try a project's predict code with --local DIR before any release."""
    del debug  # read by ``root.run``
    if (file is None) == (project is None):
        raise click.UsageError("say what to serve: a FILE, or --local DIR")
    for number in (signal.SIGINT, signal.SIGTERM):  # either one ends both processes and removes the folder
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="loopline-serve-") as folder:
        home = Path(folder)
        spec = _foreign(home, file, trust) if file else _project(project or Path(), model_dir)
        return _run(home, spec, _interpreter(python), port)


def _foreign(home: Path, file: Path, trust: bool) -> dict[str, Any]:
    """The spec for a model file of unknown origin; refused unless it is trusted."""
    if not file.is_file():
        raise NotFound(f"there is no file {file}")
    if not trust:
        raise Forbidden(
            f"opening {file.name} runs whatever code somebody put into it; if you know where it comes from: --trust"
        )
    folder = home / "model"
    folder.mkdir()
    shutil.copyfile(file, folder / ("model.joblib" if file.suffix == ".joblib" else "model.pkl"))
    return {"handler": "joblib", "model_dir": str(folder), "code_dir": None, "signature": None}


def _project(project: Path, model_dir: Path | None) -> dict[str, Any]:
    """The spec for a project's own predict.py with the model of its last local run."""
    code = project.resolve()
    if not (code / "predict.py").is_file():
        raise NotFound(f"{project} has no predict.py")
    found = model_dir.resolve() if model_dir else _last_local_model(code)
    if not found.is_dir():
        raise InvalidInput(f"{found} is not a folder")
    signature = _beside(found, "signature.json")
    return {"handler": "predict", "model_dir": str(found), "code_dir": str(code), "signature": signature}


def _last_local_model(code: Path) -> Path:
    """The model directory that the newest ``python pipeline.py`` registered."""
    versions = sorted((code / ".loopline-local" / "models").glob("*/*/model"), key=lambda path: path.stat().st_mtime)
    if not versions:
        raise NotFound(
            f"no local run has registered a model yet; run `python pipeline.py` in {code}, or use --model-dir"
        )
    return versions[-1]


def _beside(folder: Path, name: str) -> Any:
    for path in (folder / name, folder.parent / name):
        with contextlib.suppress(OSError):
            return json.loads(path.read_text())
    return None


def _interpreter(python: str | None) -> str:
    """The Python that has the model's packages: the one named, the active environment's, or this one."""
    chosen = python or shutil.which("python") or shutil.which("python3") or sys.executable
    path = shutil.which(chosen)
    if path is None:
        raise NotFound(f"there is no interpreter {chosen!r}")
    return path


def _run(home: Path, spec: dict[str, Any], python: str, port: int) -> int:
    """Start both processes, say where, and wait for either to end or for Ctrl-C."""
    import msgspec

    port = _free_port(port)
    sockets = home / "run"
    sockets.mkdir(mode=0o700)
    server_socket, status = sockets / "model.sock", sockets / "model.json"
    spec_file = home / "spec.json"
    spec_file.write_text(
        json.dumps(
            {
                **spec,
                "id": NAME,
                "warmup": [],
                "limits": {},
                "wake": str(sockets / "wake.sock"),
                "accelerator": str(Path(msgspec.__file__).parent),
            }
        )
    )
    serve_py = Path(loopline.__file__).parent / "runtime" / "serve.py"
    command = [python, "-I", str(serve_py), "--spec", str(spec_file)]
    with _process([*command, "--socket", str(server_socket), "--status", str(status)]) as server:
        _await_ready(server, status)
        (home / "snapshot.json").write_text(json.dumps(_snapshot(port, str(server_socket))))
        gateway_command = [sys.executable, "-m", "loopline.gateway", "--dir", str(home), "--bind", f"127.0.0.1:{port}"]
        with _process(gateway_command) as gateway:
            _await_port(gateway, port)
            url = f"http://127.0.0.1:{port}/endpoints/{NAME}/invocations"
            click.echo(f"serving at {url}")
            click.echo(f"""  try: curl {url} -H 'content-type: application/json' -d '{{"instances": [...]}}'""")
            click.echo("  stop: Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                while server.poll() is None and gateway.poll() is None:
                    time.sleep(LOOK_SECONDS)
                raise Unavailable("the model server ended; what it printed stands above")
    return 0


def _snapshot(port: int, server: str) -> dict[str, Any]:
    variant = {"name": NAME, "version": None, "model": None, "weight": 100.0, "servers": [server]}
    return {
        "number": 1,
        "at": time.time(),
        "allowed_hosts": [f"127.0.0.1:{port}", f"localhost:{port}"],
        "endpoints": {NAME: {"auth": False, "capture": 0.0, "variants": [variant]}},
        "keys": {},
    }


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(server: subprocess.Popen[bytes], status: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        state: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(status.read_text())
        if state.get("state") == "ready":
            return
        if state.get("state") == "failed" or server.poll() is not None:
            raise InvalidInput(f"the model cannot be served: {state.get('error') or 'its process ended'}")
        time.sleep(LOOK_SECONDS)
    raise Timeout(f"the model was not ready within {READY_SECONDS:g} s")


def _await_port(gateway: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and gateway.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(LOOK_SECONDS)
    raise Unavailable("the gateway did not start; what it printed stands above")


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise Conflict(f"port {port} is in use; choose another: --port 0 takes a free one") from None
        chosen: int = probe.getsockname()[1]
    return chosen
