"""One real platform for everything that a hostile first user tries, with a model that serves."""

from collections.abc import Iterator

import pytest

from loopline.testing import boxes
from loopline.testing.live import Platform, until

SERVED = boxes.LOOP + '\n[endpoint]\nname = "boxes"\n\n[rollout]\nsteps = [50]\nbake_seconds = 0.2\n'

PIPELINE = boxes.PIPELINE.replace("log_metric,", "log_baseline, log_metric,").replace(
    'log_metric("limit", limit)',
    'log_metric("limit", limit)\n    log_baseline([[size] for size, _ in rows], ["size"])',
)
PREDICT = boxes.PREDICT.replace('row["size"]', "row[0]")


@pytest.fixture(scope="module")
def project_files() -> dict[str, str]:
    """The boxes project, with an endpoint, and with a signature: one number called size."""
    return boxes.project(loop_toml=SERVED, pipeline_py=PIPELINE, predict_py=PREDICT)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, project_files: dict[str, str]) -> Iterator[Platform]:
    """``loopline up`` in a folder of its own, where version 1 of the boxes serves."""
    running = Platform(tmp_path_factory.mktemp("bad") / "data", job_log_mb=1)
    running.start()
    try:
        ended = running.run(project_files)
        assert ended["status"] == "Succeeded", ended
        evaluated(running, 1)
        running.call("POST", "/api/models/boxes/versions/1/approve", {"comment": "good"})
        served = "/api/endpoints/boxes"
        until(lambda: running.call("GET", served)["status"] == "InService", "version 1 serves")
        until(lambda: running.predict({"size": 3.0}).status == 200, "the endpoint answers")
        yield running
    finally:
        running.stop()


def evaluated(running: Platform, number: int) -> None:
    """Wait until the gate has judged a version."""
    path = f"/api/models/boxes/versions/{number}"
    until(lambda: any(e["verdict"] for e in running.call("GET", path)["evaluations"]), "the gate has judged")


@pytest.fixture(scope="module")
def keys(platform: Platform) -> dict[str, str]:
    """A key of each role but the administrator's."""
    made = {}
    for role in ("invoker", "viewer", "editor", "approver"):
        platform.call("POST", "/api/users", {"name": role, "role": role})
        scope = {"endpoints": ["*"]} if role == "invoker" else {}
        made[role] = platform.call("POST", "/api/keys", {"user": role, "name": "hostile", **scope})["key"]
    return made
