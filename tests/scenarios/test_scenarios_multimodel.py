"""A dozen real models behind one endpoint whose memory does not hold them all at once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import multimodel


def test_every_model_answers_for_itself_within_the_memory_of_all(tmp_path: Path) -> None:
    figures = multimodel.measure(tmp_path / "data", models=12, memory_mb=150, seconds=3, plain=0)
    assert figures["problems"] == []
    assert 0 < figures["most_mb"] <= 150
    assert figures["most_servers"] < 12 < figures["forks"]  # some had to go, and came back
