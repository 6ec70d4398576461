"""Sends home what the SageMaker SDK would send to AWS although ``AWS_ENDPOINT_URL`` is set.

The SDK writes the address of STS into its calls (``endpoint_url=sts_regional_endpoint(region)``: sagemaker 2.257.7,
session.py; 3.27, core/helper/session_helper.py), and an address in a call has precedence. While ``AWS_ENDPOINT_URL`` is
set, addresses of AWS are dropped from such calls, so that the variable decides. Without the variable nothing happens.
"""

import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_NAME = "botocore.session"
_AWS = re.compile(r"https?://[a-z0-9.-]+\.amazonaws\.com(\.cn)?/?")


def _send_home(session: Any) -> None:
    original = session.create_client

    def create_client(self: Any, *args: Any, **kwargs: Any) -> Any:
        address = kwargs.get("endpoint_url")
        if os.environ.get("AWS_ENDPOINT_URL") and isinstance(address, str) and _AWS.fullmatch(address):
            kwargs["endpoint_url"] = None
        return original(self, *args, **kwargs)

    session.create_client = create_client


class _Finder:
    """Waits for botocore's sessions to be imported, and then is gone."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> Any:
        if name != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _send_home(module.Session)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _run_the_next() -> None:
    """Python runs one ``sitecustomize``, the first on its path; the one that this one hides has its turn, too."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - runs in every Python that starts
    others = [place for place in sys.path if os.path.abspath(place) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Finder())
_run_the_next()
