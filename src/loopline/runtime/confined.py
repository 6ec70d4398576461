"""Run one program confined: ``python -I confined.py [--read PATH]... [--write PATH]... -- PROGRAM ARGUMENT...``.

For tools that run code of others, such as a package build. Limits and environment are the caller's to choose.
"""

import os
import sys

if not __package__:  # entered by path: see shim.py
    __package__ = "loopline_runtime"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
    sys.modules[__package__] = _package

import signal

from . import sandbox


def main(arguments: list[str]) -> int:
    """Read the options, confine this process for good, and become the program."""
    split = arguments.index("--")
    options, program = arguments[:split], arguments[split + 1 :]
    paths: dict[str, list[str]] = {"--read": [], "--write": []}
    for name, value in zip(options[::2], options[1::2], strict=True):
        paths[name].append(value)
    sandbox.die_with_parent(os.getppid(), signal.SIGKILL)
    os.umask(0o077)
    sandbox.limit({})
    sandbox.forbid_new_privileges()
    sandbox.drop_capabilities()
    sandbox.confine(paths["--read"], paths["--write"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
