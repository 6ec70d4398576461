"""loopline: the whole MLOps loop in one program.

``from loopline import step, pipeline`` is what a project's ``pipeline.py`` needs. This module imports nothing until a
name is asked for, because it is loaded inside every job, in the project's own environment.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What ``sdk.pipeline`` offers, written out so that ``from loopline import errors`` loads nothing of it.
EXPORTED = frozenset(
    {
        "PipelineError",
        "asset",
        "fail",
        "log_artifact",
        "log_baseline",
        "log_metric",
        "log_metrics",
        "log_param",
        "log_params",
        "otherwise",
        "pipeline",
        "register",
        "set_tag",
        "step",
        "when",
    }
)


def __getattr__(name: str) -> Any:
    if name in EXPORTED:
        return getattr(import_module("loopline.sdk.pipeline"), name)
    raise AttributeError(f"module 'loopline' has no attribute {name!r}")
