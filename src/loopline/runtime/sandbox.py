"""What a job may not do: resource limits, no_new_privs and Landlock, by system calls and without privileges.

Each layer that the kernel does not have is left out and said so; one that it has and that fails is an error.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH120

import ctypes
import errno
import math
import os
import resource
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1

SYS_CREATE_RULESET = 444
SYS_ADD_RULE = 445
SYS_RESTRICT_SELF = 446
RULE_PATH_BENEATH = 1
CREATE_RULESET_VERSION = 1

# Access rights in the order of linux/landlock.h: bit n is the n-th.
_RIGHTS = (
    "execute",
    "write_file",
    "read_file",
    "read_dir",
    "remove_dir",
    "remove_file",
    "make_char",
    "make_dir",
    "make_reg",
    "make_sock",
    "make_fifo",
    "make_block",
    "make_sym",
    "refer",
    "truncate",
    "ioctl_dev",
)
_BIT = {name: 1 << number for number, name in enumerate(_RIGHTS)}
_ALL_ABI_1 = (1 << 13) - 1
_READ = _BIT["execute"] | _BIT["read_file"] | _BIT["read_dir"]
_DEVICE_NODES = _BIT["make_char"] | _BIT["make_block"]
_ON_FILES = _BIT["execute"] | _BIT["write_file"] | _BIT["read_file"] | _BIT["truncate"] | _BIT["ioctl_dev"]
_NET = 0b11  # bind and connect of TCP
_SCOPES = 0b11  # abstract Unix sockets and signals

SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/opt",
    "/nix/store",
    "/proc",
    "/sys",
    "/run/systemd/resolve",
    "/run/opengl-driver",
)
# /dev itself is not readable: a job of a privileged user would read whole disks through it.
DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/dri",
    "/dev/kfd",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
    *(f"/dev/nvidia{number}" for number in range(8)),
)
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - semaphores and tensors of multiprocessing live there

# Reserved, untouched memory counts in RLIMIT_DATA; the slack keeps honest reservations working between two looks.
DATA_SLACK_BYTES = 2 << 30


def _prctl(option: int, value: int) -> int:
    result = _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
    return int(result)


def die_with_parent(parent: int, number: int) -> None:
    """Let the kernel send this process a signal when its parent dies; end at once when it is dead already."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Take ``die_with_parent`` back."""
    _prctl(PR_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """No exec below here gains anything: set-user-ID bits and file capabilities are ignored."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up a privileged user's capabilities, and the way back; for others nothing changes.

    Landlock leaves /proc/<pid>/environ of the same user readable. The kernel shows it only to those who hold every
    capability of the process looked at, so a job of root does not read the environment of a platform run by root.
    What stays is the right to pass over file modes, inside what Landlock allows: data may belong to another user.
    """
    if os.geteuid() != 0:
        return
    kept = 1 << CAP_DAC_OVERRIDE
    for number in range(64):
        if number != CAP_DAC_OVERRIDE and _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) < 0:
            break  # EINVAL: this kernel has no more of them; EPERM: we hold no right that could be given up
    _, _, permitted = _capabilities()
    kept &= permitted
    if _libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _capabilities() -> tuple[int, int, int]:
    """The inheritable, effective and permitted capabilities of this process, the first 32 as bits."""
    answer = ctypes.create_string_buffer(24)
    _libc.capget(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), answer)
    effective, permitted, inheritable, *_ = struct.unpack("=6I", answer.raw)
    return inheritable, effective, permitted


def hide() -> None:
    """Keep this process's environment and memory from other processes of the same user: for the platform's own."""
    _prctl(PR_SET_DUMPABLE, 0)


def landlock_abi() -> int:
    """The version of Landlock that the kernel has; 0 when it has none or it is switched off."""
    version = _libc.syscall(ctypes.c_long(SYS_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, int(version))


def _lower(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, never above the hard limit that is in force."""
    ceiling = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, wanted = min(soft, ceiling), min(wanted, ceiling)
    resource.setrlimit(kind, (soft, wanted))


def limit(limits: Mapping[str, Any]) -> None:
    """Set the resource limits of this process: no core dump, and those of ``limits`` that the kernel can hold.

    ``cpu_seconds`` ends a process by SIGXCPU; ``disk_mb`` bounds one file; ``memory_mb`` is held by the shim and backed
    here by a bound of the private memory a process may reserve, so that one huge allocation fails at once.
    """
    _lower(resource.RLIMIT_CORE, 0)
    if limits.get("cpu_seconds"):
        seconds = math.ceil(float(limits["cpu_seconds"]))
        _lower(resource.RLIMIT_CPU, seconds, seconds + 2)
    if limits.get("open_files"):
        _lower(resource.RLIMIT_NOFILE, int(limits["open_files"]))
    if limits.get("disk_mb"):
        _lower(resource.RLIMIT_FSIZE, int(float(limits["disk_mb"]) * 1048576))
    if limits.get("memory_mb"):
        _lower(resource.RLIMIT_DATA, int(float(limits["memory_mb"]) * 1048576) + DATA_SLACK_BYTES)


def _ruleset(abi: int, network: bool) -> tuple[int, int]:
    """A new ruleset's descriptor, and the rights on files that it handles."""
    files = _ALL_ABI_1
    for version, right in ((2, "refer"), (3, "truncate"), (5, "ioctl_dev")):
        files |= _BIT[right] if abi >= version else 0
    net = 0 if network else _NET
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    attributes = struct.pack("=QQQ", files, net, _SCOPES)[: sizes.get(abi, 24)]
    ruleset = _libc.syscall(
        ctypes.c_long(SYS_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock ruleset: {os.strerror(number)}")
    return int(ruleset), files


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow rights below a path; a path that does not exist allows nothing."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        added = _libc.syscall(
            ctypes.c_long(SYS_ADD_RULE),
            ctypes.c_long(ruleset),
            ctypes.c_long(RULE_PATH_BENEATH),
            rule,
            ctypes.c_uint32(0),
        )
        if added < 0:
            number = ctypes.get_errno()
            if number != errno.EBADFD:  # an inode of a kernel-internal file system cannot be named, nor needs to be
                raise OSError(number, f"Landlock rule for {path}: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def python_paths() -> list[str]:
    """Where this interpreter and its packages lie, for they need not be below /usr."""
    paths = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    return sorted(path for path in paths if path and path != "/")


class Rules(NamedTuple):
    """A ruleset that is not in force yet, and the rights to files that it knows of."""

    descriptor: int
    files: int
    abi: int
    network: bool


def common_rules(*, network: bool = True) -> Rules | None:
    """What every job may: read the system and the interpreter, use harmless devices. None without Landlock."""
    abi = landlock_abi()
    if not abi:
        return None
    ruleset, files = _ruleset(abi, network)
    for path in (*SYSTEM, *python_paths()):
        _allow(ruleset, path, _READ & files)
    _allow(ruleset, "/dev", _BIT["read_dir"])
    for path in DEVICES:
        _allow(ruleset, path, (_ON_FILES | _BIT["read_dir"]) & ~_BIT["execute"] & files)
    _allow(ruleset, SHARED_MEMORY, files & ~_DEVICE_NODES)
    return Rules(ruleset, files, abi, network)


def confine(
    read: Iterable[str], write: Iterable[str], *, network: bool = True, common: Rules | None = None
) -> list[str]:
    """Confine this process and its descendants with Landlock for good; returns the layers that hold now.

    The system and the interpreter are readable, ``read`` as well (execution included), ``write`` is read and written;
    no device node can be made. Without ``network`` no TCP connection is made or accepted (other protocols are not
    covered). Signals reach only processes of the same confinement. ``common``: ``common_rules()``, made ahead by this
    process; it is used up.
    """
    if common is not None and common.network is not network:
        os.close(common.descriptor)
        common = None
    rules = common or common_rules(network=network)
    if rules is None:
        return []
    ruleset, files, abi, _ = rules
    try:
        for path in read:
            _allow(ruleset, path, _READ & files)
        for path in write:
            _allow(ruleset, path, files & ~_DEVICE_NODES)
        if _libc.syscall(ctypes.c_long(SYS_RESTRICT_SELF), ctypes.c_long(ruleset), ctypes.c_uint32(0)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"Landlock: {os.strerror(number)}")
    finally:
        os.close(ruleset)
    held = ["landlock_files"]
    if abi >= 4 and not network:
        held.append("landlock_network")
    if abi >= 6:
        held.append("landlock_signals")
    return held


def layers() -> list[dict[str, Any]]:
    """Which layers this kernel has: ``{"name", "holds", "detail"}`` each. Changes nothing."""
    abi = landlock_abi()
    try:
        privileges = _prctl(PR_GET_NO_NEW_PRIVS, 0) >= 0
    except OSError:
        privileges = False
    unprivileged = "root's capabilities are given up" if os.geteuid() == 0 else "this user has none"
    without = "the kernel has no Landlock"
    return [
        {"name": "rlimits", "holds": True, "detail": "CPU time, size of a file, open files, reserved memory"},
        {"name": "no_new_privs", "holds": privileges, "detail": "set-user-ID programs gain nothing"},
        {"name": "no_capabilities", "holds": True, "detail": unprivileged},
        {"name": "landlock_files", "holds": abi >= 1, "detail": f"Landlock ABI {abi}" if abi else without},
        {"name": "landlock_network", "holds": abi >= 4, "detail": "TCP only" if abi >= 4 else "needs Landlock ABI 4"},
        {"name": "landlock_signals", "holds": abi >= 6, "detail": "" if abi >= 6 else "needs Landlock ABI 6"},
    ]
