"""Images: which packages stand for a container image. No image is ever fetched; its name alone chooses.

Names: docs.aws.amazon.com, "Docker Registry Paths and Example Code for Amazon SageMaker", and the repositories of AWS
Deep Learning Containers. The newest versions that go together are installed: what a tag says is not looked at.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from loopline.errors import InvalidInput

_TABLES = "numpy\npandas\nscikit-learn\nscipy\njoblib\nboto3\n"
_TORCH = _TABLES + "torch\n"
_TRANSFORMERS = _TORCH + "transformers\ntokenizers\ndatasets\naccelerate\nsafetensors\nevaluate\n"
BUILT_IN: Mapping[str, str] = {
    "sagemaker-scikit-learn": _TABLES,
    "sagemaker-xgboost": _TABLES + "xgboost\n",
    "sagemaker-base-python": "numpy\npandas\nboto3\n",
    "pytorch-training": _TORCH,
    "pytorch-inference": _TORCH,
    "huggingface-pytorch-training": _TRANSFORMERS,
    "huggingface-pytorch-inference": _TRANSFORMERS,
    "huggingface-pytorch-inference-neuronx": _TRANSFORMERS,
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,254}")


class Chosen(NamedTuple):
    """The environment of an image. ``warning``: what its author may not expect, or None."""

    requirements: str
    warning: str | None = None


def check_image(name: object) -> str:
    """``name`` itself when a repository may be called so; raises ``InvalidInput`` otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "//" in name:
        raise InvalidInput(
            f"{str(name)[:80]!r} is not the name of an image's repository: use lower-case letters, digits, '.', '_', "
            "'-' and '/', without a registry in front and without a tag"
        )
    return name


def names_of(image: str) -> list[str]:
    """The names under which an image may be known, the narrowest first.

    ``123456789012.dkr.ecr.us-east-1.amazonaws.com/team/churn:3`` is known as ``team/churn`` and as ``churn``.
    """
    plain = image.partition("@")[0]
    registry, slash, rest = plain.partition("/")
    if slash and ("." in registry or ":" in registry or registry == "localhost"):
        plain = rest
    head, _, last = plain.rpartition("/")
    last = last.partition(":")[0]
    whole = f"{head}/{last}" if head else last
    return list(dict.fromkeys((whole.lower(), last.lower())))


def choose(image: str, own: Mapping[str, str], default: str) -> Chosen:
    """The packages of an image: of the installation's ``own`` table (name: requirements), else of those known here,
    else of the ``default``, an image's name, with a warning. Raises ``InvalidInput`` when that is not known either."""
    for name in names_of(image):
        if name in own:
            return Chosen(own[name])
    for name in names_of(image):
        if name in BUILT_IN:
            return Chosen(BUILT_IN[name])
    for name in names_of(default):
        found = own.get(name, BUILT_IN.get(name))
        if found is not None:
            told = f"the image {image!r} is not known here: the packages of {name!r} stand for it"
            return Chosen(found, f"{told}; `loopline images set NAME FILE` gives it its own")
    raise InvalidInput(f"the image {image!r} is not known here; `loopline images set NAME FILE` gives it packages")
