"""A world, and a way to run a project in it to the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import pushes
from loopline.testing.boxes import follow
from loopline.testing.stage import Stage
from loopline.testing.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    opened = World(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    opened = Stage(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def versions(stage: Stage) -> Stage:
    """Two versions that passed the gate, both waiting for approval."""
    stage.register()
    return stage


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(world: World) -> Run:
    """Run a project to the end of its execution (or of its push, when that starts none); gives what was shown last."""

    def _run(files: dict[str, str], **options: Any) -> dict[str, Any]:
        tree = world.tree(files)
        push = pushes.run(world.ctx, world.actor, tree=tree, **options)["id"]
        return follow(world, push)

    return _run
