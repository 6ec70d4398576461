"""loopline: the whole MLOps loop in one program.

``from loopline import step, pipeline`` is what a project's ``pipeline.py`` needs. This module imports nothing until a
name is asked for, because it is loaded inside every job, in the project's own environment.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        module = import_module("loopline.sdk.pipeline")
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module 'loopline' has no attribute {name!r}")
