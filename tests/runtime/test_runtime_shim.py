"""The log of a shim."""

from pathlib import Path

import pytest

from loopline.runtime.shim import Log

SECRETS = [b"abcabd", b"0123456789"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_what_is_hidden_is_never_written_however_it_comes(tmp_path: Path, size: int) -> None:
    log = Log(str(tmp_path / "log"), None, SECRETS)
    said = b"ab abcabcabd! 012345678901234 abcab"

    for start in range(0, len(said), size):
        log.write(said[start : start + size])
    log.end()

    assert (tmp_path / "log").read_bytes() == b"ab abc*****! *****01234 abcab"


def test_the_cap_holds_for_what_was_held_back(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), 4, SECRETS)

    log.write(b"xyabcab")
    log.end()

    assert (tmp_path / "log").read_bytes().startswith(b"xyab\n[loopline] the log is cut here")
