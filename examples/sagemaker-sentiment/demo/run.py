"""A system written for SageMaker, run on this machine: `make demo SYSTEM=sentiment`.

    EXIT=1 make demo SYSTEM=sentiment          stop the platform at the end
    INTERACTIVE=1 make demo SYSTEM=sentiment   decide about every version yourself
    SENTENCE="..." make demo SYSTEM=sentiment  ask about this sentence; on a terminal you are asked for some
    DEMO_DIR=/some/where                       where everything is kept (default: .demo-sentiment)

What runs are the scripts of this example, as they are, by the SageMaker SDK and boto3. Every figure comes from the
platform; an expectation that does not hold ends the demo with exit code 1.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import operations
import stages
from demonstration.installation import Installation
from demonstration.performance import perform
from demonstration.screen import Screen
from inbox import Inbox


def show(screen: Screen, installation: Installation) -> None:
    """Every stage, with a subscriber of the alarms' topic, on the reviews of this example whatever else there is."""
    os.environ.pop("IMDB_DIR", None)
    with Inbox() as inbox:
        play(screen, stages.Story(screen, installation, inbox))


def play(screen: Screen, story: stages.Story) -> None:
    """Every stage in its order."""
    with screen.stage(1, "start"):
        stages.start(story)
    with screen.stage(2, "model registry"):
        stages.registry(story)
    with screen.stage(3, "deployment"):
        stages.deployment(story)
    with screen.stage(4, "your sentences"):
        stages.sentences(story)
    with screen.stage(5, "pipeline, wrong labels"):
        stages.wrong_labels(story)
    with screen.stage(6, "CI, right labels"):
        stages.right_labels(story)
    with screen.stage(7, "traffic"):
        operations.traffic(story)
    with screen.stage(8, "alarms"):
        operations.alarms(story)
    with screen.stage(9, "dashboard"):
        operations.dashboard(story)
    with screen.stage(10, "an older version again"):
        operations.back(story)


if __name__ == "__main__":
    sys.exit(perform(show, folder=".demo-sentiment", project=stages.PROJECT))
