"""The whole loop on this machine: `make demo`.

    EXIT=1 make demo          stop the platform at the end
    INTERACTIVE=1 make demo   decide about every version yourself
    DEMO_DIR=/some/where      where everything is kept (default: .demo)

Every figure comes from the platform that runs; an expectation that does not hold ends the demo with exit code 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import later
import stages
from demonstration.installation import Installation
from demonstration.performance import perform
from demonstration.screen import Screen
from sink import Sink


def show(screen: Screen, installation: Installation) -> None:
    """Every stage, with a receiver of webhooks."""
    with Sink() as sink:
        play(screen, stages.Demo(screen, installation, sink))


def play(screen: Screen, demo: stages.Demo) -> None:
    """Every stage in its order."""
    with screen.stage(1, "start"):
        stages.start(demo)
    with screen.stage(2, "push"):
        push = stages.push(demo)
    with screen.stage(3, "pipeline"):
        stages.pipeline(demo, push)
    with screen.stage(4, "gate and approval"):
        stages.gate(demo)
    with screen.stage(5, "release"):
        stages.release(demo)
    with screen.stage(6, "traffic"):
        stages.traffic(demo)
    with screen.stage(7, "a worse challenger"):
        later.challenger(demo)
    with screen.stage(8, "drift, retraining, canary"):
        later.drift(demo)
    with screen.stage(9, "a version that breaks"):
        later.breaks(demo)
    with screen.stage(10, "rollback"):
        later.rollback(demo)
    with screen.stage(11, "questions afterwards"):
        later.questions(demo)


if __name__ == "__main__":
    sys.exit(perform(show, folder=".demo", project=stages.NAME))
