"""The platform's own git repositories: one bare repository per project, and each branch that moved becomes a push.

A branch is recorded when ``refs/loopline/seen/<branch>`` stands where ``refs/heads/<branch>`` does. That mark moves
only after the push has been committed, under a key made of project, branch and commit: whatever dies in between, the
next look finds the branch unrecorded, and no push is recorded twice.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from loopline import config
from loopline.control import projects, pushes
from loopline.control.context import SYSTEM, Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.errors import InvalidInput, LooplineError, NotFound, Unavailable
from loopline.store.db import Row

log = logging.getLogger(__name__)

MAX_PACK_BYTES = 512 << 20  # of one push
SECONDS = 120.0  # the longest that one of git's own questions may take
MAX_MESSAGE = 2000
MAX_BRANCH_BYTES = 120  # of a branch's name in a delivery key; a longer one is hashed
CHUNK_BYTES = 1 << 18
OLD_LOCK_SECONDS = 7200.0
_SEEN = "refs/loopline/seen/"
_HEADS = "refs/heads/"
_PENDING = ".pending"  # no project's name begins with a dot
_HOOKS = ".hooks"

# Tells the front which refs have moved, and shows the pusher what it answers until it closes its end. The two pipes are
# inherited through git; a shell knows file descriptors of more than one digit by this path only.
_POST_RECEIVE = """#!/bin/sh
[ -n "$LOOPLINE_REPORT" ] || exit 0
{ cat; echo end; } >"/proc/self/fd/$LOOPLINE_REPORT" || exit 0
exec cat <"/proc/self/fd/$LOOPLINE_ANSWER"
"""


# -- where they are, and how git is run -------------------------------------------------------------------------------


def root(ctx: Context) -> Path:
    """The folder of all repositories; git serves what stands in it."""
    return ctx.settings.dir / "git"


def path_of(ctx: Context, project: str) -> Path:
    """The repository of a project; raises ``InvalidInput`` for what is no project's name."""
    return root(ctx) / f"{names.check_name(project, 'a project')}.git"


def environment(ctx: Context) -> dict[str, str]:
    """What git is started with: this machine's PATH, and our own settings in place of anybody's files."""
    hooks = root(ctx) / _HOOKS
    settings = {
        "safe.directory": "*",
        "core.hooksPath": str(hooks),
        "gc.auto": "0",
        "http.receivepack": "true",
        "http.getanyfile": "false",
        "pack.threads": "2",
        "pack.windowMemory": "256m",
        "receive.autogc": "false",
        "receive.denyDeleteCurrent": "ignore",
        "receive.denyNonFastForwards": "true",
        "receive.fsckObjects": "true",
        "receive.fsck.zeroPaddedFilemode": "warn",  # old histories have it; it harms nobody
        "receive.maxInputSize": str(MAX_PACK_BYTES),
        "transfer.hideRefs": "refs/loopline",
    }
    found = {
        "PATH": config.search_path(),
        "HOME": str(hooks),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        found[f"GIT_CONFIG_KEY_{number}"] = key
        found[f"GIT_CONFIG_VALUE_{number}"] = value
    return found


def program(ctx: Context) -> str:
    """The path of git; raises ``Unavailable`` when it is not installed."""
    found: str | None = ctx.cache.get("git program") or shutil.which("git", path=config.search_path())
    if found is None:
        raise Unavailable("git is not installed on the server; `loopline run` works without it")
    ctx.cache["git program"] = found
    return found


def _git(ctx: Context, repository: Path, *arguments: str, given: bytes = b"") -> bytes:
    """What a git command prints; raises ``LooplineError`` with what it said when it fails."""
    argv = [program(ctx), f"--git-dir={repository}", *arguments]
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, env=environment(ctx), timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"git {arguments[0]} took longer than {SECONDS:g} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise LooplineError(f"git {arguments[0]} failed: {said[:MAX_MESSAGE]}")
    return done.stdout


def open_repository(ctx: Context, actor: Actor, *, project: str, create: bool) -> Path:
    """A project's repository; made when it is not there and ``create`` is set, else ``NotFound``."""
    repository = path_of(ctx, project)
    if not (repository / "HEAD").is_file():
        if not create:
            raise NotFound(f"nothing was pushed to the project {project!r} yet")
        _make(ctx, repository)
    _write_hook(ctx)
    return repository


def _make(ctx: Context, repository: Path) -> None:
    """Make a bare repository under another name and rename it, so that one that is there is whole."""
    repository.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = repository.parent / f".new-{ctx.ids.new('re')}"
    try:
        _git(ctx, fresh, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")
        with suppress(OSError):  # somebody else made it at the same moment
            fresh.rename(repository)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_hook(ctx: Context) -> None:
    """Put the hook where git looks for it, once per process; nothing that a client sends reaches that folder."""
    if ctx.cache.get("git hook"):
        return
    hook = root(ctx) / _HOOKS / "post-receive"
    hook.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = hook.with_name(f".{ctx.ids.new('ho')}")
    fresh.write_text(_POST_RECEIVE)
    fresh.chmod(0o500)
    fresh.replace(hook)
    ctx.cache["git hook"] = True


# -- what was pushed --------------------------------------------------------------------------------------------------


class Receipt:
    """A push that is being received. Its note on disk says that its repository may hold branches without a record; the
    note goes when they have one, and ``sweep`` finds it when this process dies first."""

    def __init__(self, ctx: Context, actor: Actor, project: str) -> None:
        self._ctx, self._project, self._by = ctx, project, actor.name
        self._note = root(ctx) / _PENDING / ctx.ids.new("rq")
        self._recorded = False
        self._note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _active(ctx) as active:
            active.add(self._note.name)
        self._note.write_text(json.dumps({"project": project, "by": self._by}))

    def record(self, report: str) -> list[str]:
        """Record what git's hook reports, ``old new ref`` a line; gives what the pusher is to read."""
        moved = {}
        for line in report.splitlines():
            _, commit, ref = line.split(" ", 2)
            if ref.startswith(_HEADS):
                moved[ref.removeprefix(_HEADS)] = commit
        lines = record(self._ctx, self._project, self._by, moved)
        self._recorded = True
        return lines

    def close(self) -> None:
        """Record whatever moved, if the hook did not say what; raises and leaves the note when that fails."""
        try:
            if not self._recorded:
                record(self._ctx, self._project, self._by)
            self._note.unlink(missing_ok=True)
        finally:
            with _active(self._ctx) as active:
                active.discard(self._note.name)


def receive(ctx: Context, actor: Actor, *, project: str) -> Receipt:
    """Begin to receive a push; whoever calls this closes what it gives."""
    return Receipt(ctx, actor, names.check_name(project, "a project"))


_ACTIVE = threading.Lock()


@contextmanager
def _active(ctx: Context) -> Iterator[set[str]]:
    """The notes of pushes that this process is receiving."""
    with _ACTIVE:
        yield ctx.cache.setdefault("git receiving", set())


def sweep(ctx: Context) -> int:
    """Tick: record what a process that died had received and not recorded; gives how many lines that made.

    The first look of a process takes every repository, the others those with a note that nobody is working on.
    """
    if not root(ctx).is_dir():
        return 0
    folder = root(ctx) / _PENDING
    with _active(ctx) as active:
        left = [path for path in sorted(folder.glob("rq_*")) if path.name not in active]
    wanted = {}
    if not ctx.cache.get("git swept"):
        wanted = {project: SYSTEM.name for project in _all(ctx)}
        _unlock(ctx, wanted)
    notes = {}
    for note in left:
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(note.read_text())
            notes[note.name] = str(said["project"])
            wanted[notes[note.name]] = str(said["by"])
    recorded, failed = 0, set()
    for project, by in wanted.items():
        try:
            recorded += len(record(ctx, project, by))
        except (LooplineError, OSError):
            log.exception("the repository of %s cannot be read", project)
            failed.add(project)
    for note in left:
        if notes.get(note.name) not in failed:
            note.unlink(missing_ok=True)
    ctx.cache["git swept"] = True
    return recorded


def _unlock(ctx: Context, projects_: Iterable[str]) -> None:
    """Remove the lock files that a killed git left; no git of this installation runs for as long as they are old."""
    for project in projects_:
        for lock in path_of(ctx, project).rglob("*.lock"):
            with suppress(OSError):
                if ctx.clock.now() - lock.stat().st_mtime > OLD_LOCK_SECONDS:
                    lock.unlink()


def _all(ctx: Context) -> list[str]:
    found = (path.name.removesuffix(".git") for path in root(ctx).iterdir() if path.name.endswith(".git"))
    return sorted(name for name in found if not name.startswith("."))


def record(ctx: Context, project: str, by: str, moved: Mapping[str, str] | None = None) -> list[str]:
    """Record a push for each branch that moved since it was last recorded; gives a line for each, for people.

    ``moved``: branches and commits of one receive-pack. Only these are recorded then; one that somebody else has moved
    on since is left to that push. A branch that was deleted does nothing, nor does a tag. Raises ``LooplineError`` when
    the repository cannot be read.
    """
    repository = path_of(ctx, project)
    if not (repository / "HEAD").is_file():
        return []
    lines: list[str] = []
    with _repository_lock(ctx, project):
        heads, seen = _refs(ctx, repository)
        _update(ctx, repository, [f"delete {_SEEN}{branch}" for branch in seen.keys() - heads.keys()])
        for branch in sorted(heads.keys() & moved.keys() if moved is not None else heads):
            commit = heads[branch]
            if moved is not None and moved[branch] != commit:
                lines.append(f"loopline: {_printable(branch)} has moved on; that push is recorded in place of this one")
            elif seen.get(branch) != commit:
                lines += _record_branch(ctx, repository, project, by, branch, commit)
                _update(ctx, repository, [f"update {_SEEN}{branch} {commit}"])
        if lines and "main" not in heads:  # a clone checks out what HEAD names
            default = next((name for name in projects.MAIN_BRANCHES if name in heads), min(heads))
            _git(ctx, repository, "symbolic-ref", "HEAD", f"{_HEADS}{default}")
    if lines:
        ctx.wake()
    return lines


def _refs(ctx: Context, repository: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Branches and their commits: as they are, and as they were recorded."""
    listed = _git(ctx, repository, "for-each-ref", "--format=%(objectname) %(refname)", _HEADS, _SEEN)
    heads, seen = {}, {}
    for line in listed.decode(errors="surrogateescape").splitlines():
        commit, _, name = line.partition(" ")
        if name.startswith(_HEADS):
            heads[name.removeprefix(_HEADS)] = commit
        else:
            seen[name.removeprefix(_SEEN)] = commit
    return heads, seen


def _update(ctx: Context, repository: Path, commands: list[str]) -> None:
    if commands:
        given = "".join(f"{command}\n" for command in commands)
        _git(ctx, repository, "update-ref", "--stdin", given=given.encode(errors="surrogateescape"))


def _repository_lock(ctx: Context, project: str) -> threading.Lock:
    with _ACTIVE:
        locks: dict[str, threading.Lock] = ctx.cache.setdefault("git locks", {})
        return locks.setdefault(project, threading.Lock())


def _record_branch(ctx: Context, repository: Path, project: str, by: str, branch: str, commit: str) -> list[str]:
    """Export the commit's files and record the push; files that cannot be taken make one that is rejected at once."""
    label = branch.encode(errors="surrogateescape").decode(errors="replace")
    tree, problem = "", None
    try:
        tree = _export(ctx, repository, commit)
    except InvalidInput as error:
        problem = f"the commit's files cannot be taken: {error.message}"
    message = _git(ctx, repository, "log", "-1", "--format=%B", commit)[:MAX_MESSAGE].decode(errors="replace").strip()
    with ctx.db.transaction(durable=True) as tx:
        push = pushes.receive_in(
            tx,
            project=project,
            tree=tree,
            by=by,
            source="push",
            branch=label,
            commit=commit,
            message=message.replace("\0", " "),
            delivery=f"push:{project}:{_short(branch)}:{commit}",
        )
        if problem is not None:
            pushes.reject(tx, push["id"], problem)
    return _lines(ctx, push, problem)


def _short(branch: str) -> str:
    raw = branch.encode(errors="surrogateescape")
    return branch if len(raw) <= MAX_BRANCH_BYTES and raw.isascii() else hashlib.sha256(raw).hexdigest()


def _export(ctx: Context, repository: Path, commit: str) -> str:
    """Store the commit's files as a folder; gives its digest."""
    argv = [program(ctx), f"--git-dir={repository}", "archive", "--format=tar", commit]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(ctx)) as process:
        chunks = _chunks(process.stdout)
        try:
            digest = ctx.blobs.put_tar(chunks).digest
            for _ in chunks:  # the padding after a tar's end
                pass
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise LooplineError(f"git archive {commit} ended with {process.returncode}")
    return digest


def _chunks(stream: IO[bytes] | None) -> Iterator[bytes]:
    while stream is not None and (chunk := stream.read(CHUNK_BYTES)):
        yield chunk


def _lines(ctx: Context, push: Row, problem: str | None) -> list[str]:
    """What the pusher reads; mistakes in loop.toml are told at once, although the push says them too."""
    branch = _printable(push["branch"])
    follow = f"follow it with: loopline pushes show {push['id']}"
    lines = [f"loopline: push {push['id']} on {branch} recorded; {follow}"]
    try:
        if problem is not None:
            raise InvalidInput(problem)
        if projects.targets(projects.read_loop(ctx, push["tree"]), push["branch"]) is None:
            lines.append(f"loopline: the branch {branch} moves nothing; [branches] in loop.toml says which do")
    except LooplineError as error:
        lines += [f"loopline: it starts nothing: {line}" for line in error.message.splitlines()[:20]]
    return lines


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """The repositories that were pushed to, with their branches."""
    items = []
    for project in _all(ctx) if root(ctx).is_dir() else ():
        listed = _git(ctx, path_of(ctx, project), "for-each-ref", "--format=%(objectname) %(refname:short)", _HEADS)
        branches = [line.split(" ", 1) for line in listed.decode(errors="replace").splitlines()]
        items.append({"project": project, "branches": {name: commit for commit, name in branches}})
    return {"items": items, "next": None}
