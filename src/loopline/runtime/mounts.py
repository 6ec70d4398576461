"""Mounts of a process's own: other files at fixed paths, for it and its descendants alone, without privileges.

A new user and mount namespace gives the right to mount, and nothing outside it changes. Where the kernel or its
administrator allows none, ``OSError`` is raised before anything has changed.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH102, PTH112, PTH114, PTH115, PTH118, PTH123, PTH208, PTH211

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18


def detach() -> None:
    """Leave the mounts of everybody else. The user and group stay what they are; the process has one thread.

    A privileged user needs no user namespace for it, as long as it has not given up its rights.
    """
    if os.geteuid() == 0 and _libc.unshare(CLONE_NEWNS) == 0:
        _mount(None, "/", MS_REC | MS_PRIVATE)
        return
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    _mount(None, "/", MS_REC | MS_PRIVATE)


def show(source: str, target: str) -> None:
    """Let ``target``, which exists, be ``source``: two folders or two files."""
    _mount(source, target, MS_BIND)


def show_below(source: str, target: str, stage: str) -> None:
    """Let ``target`` be ``source`` though nothing may be there and nothing can be made: only its folder exists.

    That folder is replaced by ``stage``, a new one, which shows everything that it holds, and ``source`` beside it.
    """
    folder, name = os.path.split(target)
    replace(folder, stage, [entry for entry in os.listdir(folder) if entry != name])
    place = os.path.join(folder, name)
    os.mkdir(place, 0o755)
    show(source, place)


def replace(folder: str, stage: str, kept: list[str]) -> None:
    """Let ``folder`` be the new folder ``stage``, in which only the entries ``kept`` of the old one are seen."""
    os.mkdir(stage, 0o755)
    _mount(stage, stage, MS_BIND)
    for entry in kept:
        source, place = os.path.join(folder, entry), os.path.join(stage, entry)
        if os.path.islink(source):
            os.symlink(os.readlink(source), place)
            continue
        if os.path.isdir(source):
            os.mkdir(place, 0o755)
        else:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        _mount(source, place, MS_BIND | MS_REC)
    _mount(stage, folder, MS_MOVE)


def _mount(source: str | None, target: str, flags: int) -> None:
    origin = None if source is None else source.encode()
    _call(f"mount {target}", _libc.mount(origin, target.encode(), None, ctypes.c_ulong(flags), None))


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
