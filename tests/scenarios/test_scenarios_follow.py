"""An endpoint that follows a model, on a whole installation: approvals move it, and a re-approval takes it back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.boxes import LOOP, PREDICT, project
from loopline.testing.live import Platform, until

ENDPOINT = """
[endpoint]
name = "boxes"
deploy_on_approval = true

[rollout]
strategy = "all-at-once"
bake_seconds = 0.2
max_latency_ratio = 1000               # how busy the machine is does not matter here
"""
SAID = 'return ["large" if row["size"] > model else "small" for row in batch]'


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Three versions that passed the gate; each says which it is."""
    opened = Platform(Path(tmp_path_factory.mktemp("follow")) / "data")
    try:
        opened.start()
        for number in (1, 2, 3):
            said = f'return [("large" if row["size"] > model else "small") + " of {number}" for row in batch]'
            loop = LOOP.replace("thresholds = { accuracy = 0.8 }", 'better_than_champion = "off"') + ENDPOINT
            files = project(loop_toml=loop)
            files["predict.py"] = PREDICT.replace(SAID, said)
            assert opened.run(files, parameters={"shift": number / 1000})["status"] == "Succeeded"
        yield opened
    finally:
        opened.stop()


def serves(platform: Platform) -> Any:
    answer = platform.predict({"instances": [{"size": 9}]})
    return answer.json["predictions"][0] if answer.status == 200 else None


def moved_to(platform: Platform, number: int) -> None:
    """Wait until a version serves, and its rollout is over."""
    until(lambda: serves(platform) == f"large of {number}", f"version {number} serves", 60)
    until(lambda: platform.call("GET", "/api/endpoints/boxes")["rollout"] is None, "the rollout is over", 60)


def test_approvals_move_an_endpoint_and_a_reapproval_takes_it_back(platform: Platform) -> None:
    assert platform.call("GET", "/api/endpoints/boxes")["follows"] == "boxes"
    assert platform.cli("approve", "boxes", "1").returncode == 0
    moved_to(platform, 1)
    assert platform.cli("approve", "boxes", "3").returncode == 0
    moved_to(platform, 3)
    rejected = platform.cli("reject", "boxes", "3", "--comment", "wrong prices")
    assert "it still serves boxes" in rejected.stdout + rejected.stderr, rejected
    assert serves(platform) == "large of 3"
    again = platform.cli("approve", "boxes", "1", "--again", "--comment", "back")
    assert again.returncode == 0, again
    moved_to(platform, 1)
    newest = platform.call("GET", "/api/rollouts?endpoint=boxes")["items"][0]
    assert (newest["kind"], newest["status"]) == ("rollback", "Succeeded")


def test_an_endpoint_stops_following_and_follows_again_by_command(platform: Platform) -> None:
    assert platform.cli("endpoints", "follow", "boxes", "--stop").returncode == 0
    assert platform.call("GET", "/api/endpoints/boxes")["follows"] is None
    number = platform.call("GET", "/api/events?noun=version&limit=1")["items"][0]["number"]
    assert platform.cli("approve", "boxes", "2").returncode == 0
    assert platform.call("GET", "/api/events?noun=version&limit=1")["items"][0]["number"] > number
    assert platform.cli("endpoints", "follow", "boxes", "boxes").returncode == 0
    before = [row["plan"]["number"] for row in platform.call("GET", "/api/rollouts?endpoint=boxes")["items"]]
    assert 2 not in before
    assert platform.cli("approve", "boxes", "2", "--again").returncode == 0
    moved_to(platform, 2)
