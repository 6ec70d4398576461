"""Pieces of logs: their text, and when it came."""

import codecs
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from loopline.compute import LogChunk
from loopline.compute.subprocess import SubprocessBackend
from loopline.testing.compute_contract import shell, wait_for, wait_for_end


@given(st.binary(max_size=60), st.lists(st.integers(1, 7), min_size=60), st.sets(st.integers(0, 59)))
def test_pieces_put_together_are_the_text_and_its_times(data: bytes, sizes: list[int], stamps: set[int]) -> None:
    noted = [(place, float(number)) for number, place in enumerate(sorted({0, *stamps})) if place < max(1, len(data))]
    text, offset = "", 0
    found: dict[float, int] = {}

    for size in sizes:
        piece = data[offset : offset + max(4, size)]
        before = [entry for entry in noted if entry[0] <= offset][-1:]
        within = [entry for entry in noted if offset < entry[0] < offset + len(piece)]
        chunk = LogChunk(offset, offset + len(piece), piece, False, (*before, *within))
        told, offset, times = chunk.decoded(last=offset + len(piece) == len(data))
        found.update({at: len(text) + int(place) for place, at in times if at not in found})
        text += told

    assert text == data.decode("utf-8", "replace")
    decoder = codecs.getincrementaldecoder("utf-8")
    assert found == {at: len(decoder("replace").decode(data[:place])) for place, at in noted}


def test_a_line_has_the_time_when_it_came_in_every_look(tmp_path: Path) -> None:
    backend = SubprocessBackend(tmp_path / "attempts", tmp_path / "run")
    began = time.time()
    go = tmp_path / "go"
    backend.submit(shell("at_times", f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; echo second; echo third"))
    (first,) = wait_for(lambda: backend.logs("at_times").data and backend.logs("at_times").times, "the first line")
    assert first[0] == 0 and began - 0.001 <= first[1] <= time.time()
    seen = time.time()
    wait_for(lambda: time.time() > seen + 0.2, "another time")
    go.touch()
    wait_for_end(backend, "at_times")

    known = backend.logs("at_times").times

    assert known[0] == first and known[1][0] == 6 and seen < known[1][1] <= time.time()
    assert backend.logs("at_times", offset=8).times[0] == known[1]
    assert backend.logs("at_times", offset=1 << 40).times == known[-1:]
