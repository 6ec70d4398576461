"""Every strategy under load, on a whole installation: no caller is ever answered by anything but a version."""

import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.testing.boxes import LOOP, PREDICT, project
from loopline.testing.live import Platform, until

ENDPOINT = """
[endpoint]
name = "boxes"
deploy_on_approval = false
instances = 2

[gate]
mode = "off"

[rollout]
strategy = "{strategy}"
bake_seconds = 1
max_latency_ratio = 1000000             # how busy the machine is does not matter here
"""
SAID = 'return ["large" if row["size"] > model else "small" for row in batch]'
CLIENTS = 4


class Callers:
    """Clients that keep asking; ``wrong`` holds every answer that was not 200 or not of the version it names."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._over = threading.Event()
        self.answers: Counter[str] = Counter()
        self.wrong: list[object] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        headers = {"authorization": f"Bearer {self._platform.key}", "content-type": "application/json"}
        connection = http.client.HTTPConnection(self._platform.host, timeout=60)
        body = json.dumps({"instances": [{"size": 9}]})
        while not self._over.is_set():
            try:
                connection.request("POST", "/endpoints/boxes/invocations", body, headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
                continue
            version = answer.headers["x-loopline-version"]
            if answer.status != 200 or said != {"predictions": [f"large of {version}"]}:
                self.wrong.append((answer.status, version, said))
            self.answers[version] += 1
        connection.close()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    opened = Platform(Path(tmp_path_factory.mktemp("strategies")) / "data")
    try:
        opened.start()
        for number in range(1, 8):
            answer = f'return [("large" if row["size"] > model else "small") + " of {number}" for row in batch]'
            files = project(loop_toml=LOOP.split("[gate]")[0] + ENDPOINT.format(strategy="canary"))
            files["predict.py"] = PREDICT.replace(SAID, answer)
            assert opened.run(files, parameters={"shift": number / 1000})["status"] == "Succeeded"
        opened.call("POST", "/api/endpoints/boxes/release", {"number": 1})
        until(lambda: opened.predict({"instances": [{"size": 9}]}).status == 200, "version 1 serves")
        yield opened
    finally:
        opened.stop()


def _release(platform: Platform, number: int, strategy: str, settings: dict[str, object]) -> dict[str, object]:
    given = {"number": number, "strategy": strategy, "settings": settings}
    made = platform.call("POST", "/api/endpoints/boxes/release", given)
    return platform.ended("rollout", made["id"], 300)


def test_no_strategy_loses_a_request(platform: Platform) -> None:
    until(lambda: not platform.call("GET", "/api/endpoints/boxes")["rollout"], "the first release is over")
    callers = Callers(platform)
    try:
        plans: tuple[tuple[str, dict[str, object]], ...] = (
            ("canary", {"steps": [20]}),
            ("linear", {"step_percent": 50}),
            ("rolling", {"batch": 1}),
            ("blue-green", {}),
            ("all-at-once", {}),
        )
        for number, (strategy, settings) in enumerate(plans, 2):
            done = _release(platform, number, strategy, settings)
            assert done["status"] == "Succeeded", (strategy, done["reason"])
        made = platform.call("POST", "/api/endpoints/boxes/release", {"number": 7, "strategy": "shadow", "share": 50})
        assert platform.ended("rollout", made["id"], 300)["status"] == "Succeeded"
        until(
            lambda: platform.call("GET", "/api/endpoints/boxes/shadow")["compared"] > 20, "the shadow has been compared"
        )
        platform.call("PUT", "/api/endpoints/boxes/traffic", {"weights": {"v6": 90, "v7": 10}})
        before = callers.answers["7"]
        until(lambda: callers.answers["7"] > before + 5, "version 7 answers callers")
        back = platform.call("POST", "/api/endpoints/boxes/rollback", {"reason": "a test"})
        assert back["serving"]["version"] == 5
    finally:
        callers.stop()
    assert callers.wrong == []
    assert set(callers.answers) == {str(number) for number in range(1, 8)}


def test_people_see_what_was_decided_on_and_what_runs(platform: Platform) -> None:
    rollout = next(each for each in platform.call("GET", "/api/rollouts")["items"] if each["strategy"] == "canary")
    shown = platform.cli("rollouts", "show", rollout["id"]).stdout.splitlines()
    assert "percent\t20 100" in shown and "strategy\tcanary" in shown
    assert [line.split("\t")[:2] for line in shown[-2:]] == [["20", "go"], ["100", "go"]]
    shown = platform.cli("endpoints", "show", "boxes").stdout.splitlines()
    assert "rollout strategy\tcanary" in shown
    assert any(line.startswith("v5\tboxes v5\tReady\t100\t100.0%") for line in shown)
    assert not any("{" in line for line in shown)
    wrong = platform.cli("endpoints", "traffic", "boxes", "v5=1")
    assert wrong.returncode == 2 and "--set VARIANT=WEIGHT" in wrong.stderr


def test_every_answer_of_the_shadow_was_another_one(platform: Platform) -> None:
    found = platform.call("GET", "/api/endpoints/boxes/shadow?variant=v7")
    assert found["compared"] == found["differing"] > 20 and found["errors"] == {"caller": 0, "shadow": 0}
    assert {(cell["caller"], cell["shadow"]) for cell in found["labels"]} == {("large of 6", "large of 7")}


def test_a_version_whose_unpacked_files_have_gone_serves_again(platform: Platform) -> None:
    stopped = platform.ask("POST", "/api/endpoints/boxes/variants/v1/stop", {})
    assert stopped.status == 200 or "Stopped" in stopped.error["message"]
    version = platform.call("GET", "/api/models/boxes/versions/1")
    folders = [
        platform.folder / "trees" / version["tree"],
        platform.folder / "models" / version["artifact"]["sha256"],
    ]
    others = {path for name in ("trees", "models") for path in (platform.folder / name).iterdir()} - {*folders}
    for folder in (*folders, *others):
        os.utime(folder, (1e9, 1e9))  # nobody has asked for any of them for a long time
    platform.kill("control")  # it looks as it starts

    until(lambda: not any(folder.exists() for folder in folders), "the files of version 1 are gone")
    serving = platform.call("GET", "/api/models/boxes/versions/5")["artifact"]["sha256"]
    assert (platform.folder / "models" / serving).is_dir()
    back = platform.call("POST", "/api/endpoints/boxes/rollback", {"to": 4, "reason": "what is kept warm is at hand"})
    assert back["serving"]["version"] == 4
    platform.ended("rollout", back["id"])
    assert _release(platform, 1, "all-at-once", {})["status"] == "Succeeded"
    assert platform.predict({"instances": [{"size": 9}]}).json == {"predictions": ["large of 1"]}
