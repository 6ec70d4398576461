"""What is left of attempts: their logs, for as long as the settings say."""

from collections.abc import Callable
from typing import Any

from loopline.control import attempts, executions
from loopline.control.context import Clock
from loopline.testing.boxes import project
from loopline.testing.world import World


class Later(Clock):
    """The time of day, some days on."""

    def __init__(self, days: float) -> None:
        self.days = days

    def now(self) -> float:
        return super().now() + self.days * 86400


def test_logs_are_kept_for_their_time_and_no_longer(world: World, run: Callable[..., dict[str, Any]]) -> None:
    shown = run(project())
    folder = world.ctx.settings.dir / "attempts"
    (folder / "somebody-else-s").mkdir()
    count = len(list(folder.iterdir()))
    assert count > 3
    world.ctx.clock = Later(29)
    assert attempts.prune(world.ctx) == 0
    world.ctx.clock = Later(31)
    assert attempts.prune(world.ctx) == count - 1
    assert [path.name for path in folder.iterdir()] == ["somebody-else-s"]
    gone = executions.log(world.ctx, world.actor, execution=shown["id"], step="fit")
    assert gone["text"] == "" and gone["end"] is True
