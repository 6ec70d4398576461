"""The whole loop on this machine: `make demo`.

    EXIT=1 make demo          stop the platform at the end
    INTERACTIVE=1 make demo   decide about every version yourself
    DEMO_DIR=/some/where      where everything is kept (default: .demo)

Every figure comes from the platform that runs; an expectation that does not hold ends the demo with exit code 1.
"""

import os
import sys
from pathlib import Path

import later
import stages
from installation import ROOT, Installation
from screen import Declined, DemoFailed, Screen
from sink import Sink


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


def finish(screen: Screen, installation: Installation) -> None:
    """The table, and what is left running."""
    screen.summary()
    if os.environ.get("EXIT") == "1":
        installation.down()
        screen.say("the platform is stopped; nothing of it is left running")
        return
    screen.say(f"loopline is still up: {installation.url}    (the page asks for the key)")
    screen.say(f"administrator's key:  {installation.data / 'client.json'}")
    screen.say(f"commands:             export LOOPLINE_DIR={installation.data}; loopline status")
    screen.say(f"stop it:              kill {installation.pid}")


def main() -> int:
    """Run the demo; gives the exit code."""
    screen = Screen()
    folder = Path(os.environ.get("DEMO_DIR") or ROOT / ".demo").absolute()
    installation = Installation(screen, folder)
    code = 1
    try:
        with Sink() as sink:
            play(screen, stages.Demo(screen, installation, sink))
        finish(screen, installation)
        code = 0
    except Declined as error:
        screen.say(f"{error}: the loop ends here, as it should")
        installation.down()
        code = 0
    except DemoFailed as error:
        screen.failed(str(error))
        screen.say(f"logs: {installation.data / 'logs'}")
    except KeyboardInterrupt:
        screen.failed("interrupted")
        code = 130
    finally:
        if code and installation.pid:
            installation.down()
    return code


if __name__ == "__main__":
    sys.exit(main())
