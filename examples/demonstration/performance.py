"""The beginning and the end of a demonstration, whatever it shows."""

import os
from collections.abc import Callable
from pathlib import Path

from demonstration.installation import ROOT, Installation
from demonstration.screen import Declined, DemoFailed, Screen


def perform(play: Callable[[Screen, Installation], None], *, folder: str, project: str) -> int:
    """Play on an installation in ``folder`` of the repository, or in ``DEMO_DIR``; gives the exit code."""
    screen = Screen()
    place = Path(os.environ.get("DEMO_DIR") or ROOT / folder).absolute()
    installation = Installation(screen, place, project)
    code = 1
    try:
        play(screen, installation)
        _finish(screen, installation)
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


def _finish(screen: Screen, installation: Installation) -> None:
    """The table, and what is left running."""
    screen.summary()
    if os.environ.get("EXIT") == "1":
        installation.down()
        screen.say("the platform is stopped; nothing of it is left running")
        screen.say(f"{len(screen.done)} stages, and every expectation held")
        return
    screen.say(f"loopline is still up: {installation.url}    (the page asks for the key)")
    screen.say(f"administrator's key:  {installation.data / 'client.json'}")
    screen.say(f"commands:             export LOOPLINE_DIR={installation.data}; loopline status")
    screen.say(f"stop it:              kill {installation.pid}")
