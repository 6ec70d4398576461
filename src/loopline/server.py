"""Control's process: opens the installation, mounts the fronts and the console, starts the engine.

    python -m loopline.server --dir DIR

The composition root: nothing else builds a ``Context``.
"""

import argparse
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from loopline import config
from loopline.compute.environments import Environments
from loopline.compute.subprocess import SubprocessBackend
from loopline.config import Settings
from loopline.control import (
    access,
    environments,
    executions,
    functions,
    invocations,
    jobs,
    processes,
    pushes,
    rollouts,
    servables,
    snapshots,
)
from loopline.control.context import Clock, Context, Ids
from loopline.engine.tasks import JOB_OWNERS
from loopline.engine.worker import Engine
from loopline.outbound.http import Sender
from loopline.outbound.mail import Mailer
from loopline.store import migrations
from loopline.store.blobs import LocalBlobs
from loopline.store.db import Db
from loopline.store.secrets import Secrets, Signer

log = logging.getLogger("loopline.control")


def open_context(settings: Settings) -> Context:
    """Open database, blobs and keys; brings the database to this program's schema."""
    for folder in (settings.dir, settings.run_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = Clock()
    ids = Ids(clock, settings.seed)
    db = Db(settings.database, clock=clock.now, new_id=ids.new)
    migrations.upgrade(db)
    keys = settings.dir / "keys"
    return Context(
        settings=settings,
        db=db,
        blobs=LocalBlobs(settings.dir / "blobs"),
        secrets=Secrets(db, keys),
        signer=Signer(keys),
        compute=SubprocessBackend(settings.dir / "attempts", settings.run_dir),
        environments=Environments(settings.dir / "environments"),
        outbound=Sender(settings.outbound_allow),
        clock=clock,
        ids=ids,
        host=socket.gethostname(),
        job_owners=dict(JOB_OWNERS),
        mail=Mailer(settings.smtp_url, settings.smtp_from) if settings.smtp_url else None,
    )


def recover(ctx: Context) -> None:
    """Bring what was going on when control last stopped back into motion; files and tables first, then the engine."""
    snapshots.publish(ctx)
    processes.write(ctx)
    environments.recover(ctx)
    jobs.recover(ctx)
    pushes.recover(ctx)
    executions.recover(ctx)
    rollouts.recover(ctx)
    functions.recover(ctx)
    servables.recover(ctx)
    invocations.recover(ctx)


def build(ctx: Context) -> ASGIApp:
    """The application behind control's socket."""
    from loopline.console.app import routes as console_routes
    from loopline.fronts.aws.entry import Entry
    from loopline.fronts.git.app import routes as git_routes
    from loopline.fronts.native.app import build as build_native

    app = Starlette(routes=[*git_routes(ctx), *console_routes(ctx)])
    app.router.redirect_slashes = False
    app.router.default = build_native(ctx)  # not mounted: a mount's pattern matches no path with a newline in it
    return Entry(ctx, app)


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: stopping is ours, because the engine stops first."""

    def install_signal_handlers(self) -> None:
        return None


def main(argv: list[str] | None = None) -> int:
    """Run control until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m loopline.server")
    parser.add_argument("--dir", required=True)
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = config.load(dir=given.dir)
    lock = _become_the_only_one(settings.dir)
    ctx = open_context(settings)
    first_key = access.bootstrap(ctx, settings.url)
    if first_key is not None:
        _show_once(settings.dir / "admin-token", first_key)
    recover(ctx)
    engine = Engine(ctx)
    engine.start()
    try:
        app = build(ctx)
        gc.freeze()  # what is there now stays: no collection need look at it again
        _serve(app, settings.run_dir / "control.sock")
    finally:
        engine.stop()
        ctx.db.close()
        os.close(lock)
    return 0


def _become_the_only_one(directory: Path) -> int:
    """Wait until no other control serves this directory; the kernel gives the lock back when a process dies."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _show_once(path: Path, key: str) -> None:
    """Leave the first key for ``loopline up`` to show and remove."""
    path.touch(mode=0o600)
    path.write_text(key)


def _serve(app: Any, path: Path) -> None:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(256)
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop",
            lifespan="off",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )

    def stop(_number: int, _frame: object) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
