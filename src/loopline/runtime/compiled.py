"""The compiled form of a project's files, made once for all the jobs that run them.

Jobs cannot write into the project's tree, so that each would compile it anew, which costs a small step more than its
work. It is done by the first job of a tree, before it is confined: compiling runs nothing of the project's. What was
compiled is not compared with its source again, for a tree never changes.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH103, PTH110, PTH114, PTH118, PTH120, PTH202

import os
import py_compile
import sys
from collections.abc import Iterator
from contextlib import suppress

MAX_BYTES = 1024 * 1024  # of a tree's source; what is beyond it is compiled by those who import it
CACHE = "__pycache__"


def compile_tree(tree: str) -> bool:
    """Write the compiled files of a tree beside its sources; False when that was done before, or cannot be done."""
    mark = f"{tree}/{CACHE}/{sys.implementation.cache_tag}.done"
    if os.path.exists(mark):
        return False
    try:
        for path in _sources(tree):
            _compile(path)
        os.makedirs(os.path.dirname(mark), mode=0o700, exist_ok=True)
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return False  # a full disk, or a tree that is not ours to write
    return True


def _sources(tree: str) -> Iterator[str]:
    left = MAX_BYTES
    for directory, below, names in os.walk(tree):
        below[:] = sorted(name for name in below if name != CACHE)
        for name in sorted(names):
            path = os.path.join(directory, name)
            if name.endswith(".py") and not os.path.islink(path):
                left -= os.path.getsize(path)
                if left < 0:
                    return
                yield path


def _compile(path: str) -> None:
    with suppress(py_compile.PyCompileError):  # whoever imports it learns why
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
