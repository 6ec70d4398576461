"""Scripts: a program gets what its container would have; what it leaves becomes objects. The programs really run."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from loopline.control import buckets, executions, images, objects, pipelines, scripts, tracking
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.testing.live import packed
from loopline.testing.world import World

IMAGE = "plain"  # the standard library alone, so that no package is needed

TRAIN = """
import argparse, json, os, pathlib, sys

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
args, _ = parser.parse_known_args()
numbers = [float(line) for path in sorted(pathlib.Path(args.train).iterdir()) for line in path.read_text().split()]
for epoch in range(args.epochs):
    print(f"epoch={epoch} loss={1 / (epoch + 1):.3f};")
model = {"mean": sum(numbers) / len(numbers), "host": os.environ["SM_CURRENT_HOST"], "hosts": os.environ["SM_HOSTS"]}
pathlib.Path(args.model_dir, f"model-{os.environ['SM_CURRENT_HOST']}.json").write_text(json.dumps(model))
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "notes.txt").write_text(json.dumps({
    "rank": os.environ["RANK"],
    "resources": json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "resourceconfig.json").read_text()),
    "hyperparameters": json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "hyperparameters.json").read_text()),
    "hps": json.loads(os.environ["SM_HPS"]),
    "own": os.environ["OWN"],
    "opt": os.path.isdir("/opt/ml/model") and os.path.samefile("/opt/ml/model", args.model_dir),
    "cwd": os.listdir("."),
}))
"""


@pytest.fixture
def shop(world: World) -> World:
    """A world with a bucket, some data, and an image that needs no packages."""
    images.put(world.ctx, world.actor, image=IMAGE, requirements="")
    buckets.create(world.ctx, world.actor, bucket="shop")
    for name, text in (("data/train/a.txt", "1 2"), ("data/train/b.txt", "3 6"), ("data/trainer.txt", "9")):
        put(world, name, text.encode())
    return world


def put(world: World, key: str, data: bytes) -> None:
    objects.put(world.ctx, world.actor, bucket="shop", key=key, data=[data])


def get(world: World, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    _, reader = objects.open_(world.ctx, bucket, key)
    with reader:
        return reader.read()


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}  # type: ignore[union-attr]


def submit(world: World, name: str, source: str = TRAIN, **more: Any) -> dict[str, Any]:
    put(world, f"code/{name}-0.tar.gz", packed({"train.py": source}))
    settings = {
        "contract": "training",
        "image": IMAGE,
        "code": f"s3://shop/code/{name}-0.tar.gz",
        "program": "train.py",
        "hyperparameters": {"epochs": "3"},
        "channels": {"train": {"uri": "s3://shop/data/train"}},
        "output_uri": "s3://shop/out",
        "environment": {"OWN": "mine"},
        "metrics": [{"name": "loss", "regex": "loss=([0-9.]+);"}],
        **more,
    }
    return scripts.submit(world.ctx, world.actor, name=name, settings=settings)


def ended(world: World, name: str, contract: str = "training") -> dict[str, Any]:
    def over() -> bool:
        found = scripts.show(world.ctx, world.actor, contract=contract, name=name)
        return found["ended_at"] is not None

    world.settle(over)
    return scripts.show(world.ctx, world.actor, contract=contract, name=name)


def test_a_program_trains_on_its_channel_and_its_model_becomes_an_object(shop: World) -> None:
    submit(shop, "first")
    row = ended(shop, "first")

    assert (row["status"], row["reason"]) == ("Succeeded", None)
    assert row["result"]["model"] == "s3://shop/out/first/output/model.tar.gz"
    model = unpacked(get(shop, row["result"]["model"]))
    assert json.loads(model["model-algo-1.json"]) == {"mean": 3.0, "host": "algo-1", "hosts": '["algo-1"]'}
    notes = json.loads(unpacked(get(shop, row["result"]["output"]))["notes.txt"])
    assert notes["own"] == "mine" and notes["rank"] == "0"
    assert notes["hps"] == {"epochs": 3} and notes["hyperparameters"] == {"epochs": "3"}
    assert notes["resources"]["hosts"] == ["algo-1"]
    assert notes["cwd"] == ["train.py"]
    assert notes["opt"] is True, row["warnings"]
    assert not os.path.exists("/opt/ml")  # noqa: PTH110 - nothing outside the program has changed
    run = tracking.show(shop.ctx, shop.actor, run=row["run"])
    assert run["parameters"]["epochs"] == 3
    assert run["inputs"][0]["asset"] == "s3://shop/data/train"
    found = scripts.metrics(shop.ctx, shop.actor, contract="training", name="first")
    assert [(m["name"], m["value"]) for m in found] == [("loss", 0.333)]
    assert "epoch=2 loss=0.333;" in scripts.log(shop.ctx, shop.actor, contract="training", name="first")["text"]


def test_code_brings_packages_of_its_own(shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    wheel(tmp_path, "boxkit")
    program = "import boxkit, os, pathlib\npathlib.Path(os.environ['SM_MODEL_DIR'], 'kit').write_text(str(boxkit.HERE))"
    put(shop, "code/kit.tar.gz", packed({"train.py": program, "requirements.txt": "boxkit==1.0\n"}))
    submit(shop, "kit", code="s3://shop/code/kit.tar.gz")

    row = ended(shop, "kit")

    assert row["status"] == "Succeeded", row["reason"]
    assert unpacked(get(shop, row["result"]["model"])) == {"kit": b"True"}


@pytest.mark.parametrize("packs", [False, True])
def test_the_sdk_3_says_which_file_lists_packages(
    shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    wheel(tmp_path, "boxkit")
    run = "import boxkit, os, pathlib; pathlib.Path(os.environ['SM_MODEL_DIR'], 'kit').write_text(str(boxkit.HERE))"
    code = {"train.py": run, "needs.txt": "boxkit==1.0\n"}
    files = {"source.tar.gz": packed(code)} if packs else {name: text.encode() for name, text in code.items()}
    for name, data in files.items():
        put(shop, f"in/code/{name}", data)
    put(shop, "in/drivers/sourcecode.json", b'{"requirements": "./needs.txt", "entry_script": "train.py"}')
    unpack = "tar -xf source.tar.gz && " if packs else ""
    submit(
        shop,
        "kit",
        code=None,
        program=None,
        entrypoint=["/bin/bash"],
        arguments=["-c", f"cd /opt/ml/input/data/code && {unpack}python3 train.py"],
        channels={"code": {"uri": "s3://shop/in/code"}, "sm_drivers": {"uri": "s3://shop/in/drivers"}},
    )

    row = ended(shop, "kit")

    assert row["status"] == "Succeeded", row["reason"]
    assert unpacked(get(shop, row["result"]["model"])) == {"kit": b"True"}


def wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "HERE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},," for path in (*files, f"{info}/RECORD")]
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": "\n".join(lines) + "\n"}.items():
            archive.writestr(path, text)


MEASURE = """
import json, pathlib
model = json.loads(pathlib.Path("/opt/ml/processing/model/content").read_text())
pathlib.Path("/opt/ml/processing/report/evaluation.json").write_text(json.dumps({"metrics": {"right": model["right"]}}))
"""


def two_steps(world: World) -> dict[str, Any]:
    """A program that leaves a model, and one that measures it, as a pipeline; its parameter is what is right."""
    make = "import json, os, sys, pathlib\npathlib.Path('/opt/ml/processing/out/content').write_text("
    put(world, "code/make.py", f"{make}json.dumps({{'right': float(sys.argv[1])}}))".encode())
    put(world, "code/measure.py", MEASURE.encode())
    code = {"uri": {"value": "s3://shop/code/make.py"}, "path": {"value": "/opt/ml/processing/code"}}
    first = {
        "contract": {"value": "processing"},
        "image": {"value": IMAGE},
        "entrypoint": {"value": ["python3", "/opt/ml/processing/code/make.py"]},
        "arguments": {"list": [{"ref": {"parameter": "right"}}]},
        "channels": {"dict": {"code": {"dict": code}}},
        "outputs": {"value": {"model": {"path": "/opt/ml/processing/out", "uri": "s3://shop/made"}}},
    }
    uri = {"ref": {"step": "make", "output": "result", "path": ["outputs", "model"]}}
    second = {
        **first,
        "entrypoint": {"value": ["python3", "/opt/ml/processing/code/measure.py"]},
        "arguments": {"value": []},
        "channels": {
            "dict": {
                "code": {"dict": {**code, "uri": {"value": "s3://shop/code/measure.py"}}},
                "model": {"dict": {"uri": uri, "path": {"value": "/opt/ml/processing/model"}}},
            }
        },
        "outputs": {"value": {"report": {"path": "/opt/ml/processing/report", "uri": "s3://shop/report"}}},
    }
    measure = {"kind": "script", "name": "measure", "settings": {"dict": second}, "cache": True}
    return {
        "version": 1,
        "name": "measured",
        "parameters": [{"name": "right", "type": "number", "default": 0.9}],
        "steps": [
            {"kind": "script", "name": "make", "settings": {"dict": first}, "cache": True},
            {**measure, "reports": {"evaluation": {"output": "report", "path": "evaluation.json"}}},
            {
                "kind": "condition",
                "name": "good",
                "condition": {
                    "op": "ge",
                    "left": {"ref": {"step": "measure", "output": "evaluation", "path": ["metrics", "right"]}},
                    "right": {"value": 0.5},
                },
            },
        ],
    }


def run(world: World, **parameters: Any) -> dict[str, dict[str, Any]]:
    execution = pipelines.start(world.ctx, world.actor, pipeline="measured", parameters=parameters)["id"]

    def over() -> bool:
        return executions.show(world.ctx, world.actor, execution=execution)["ended_at"] is not None

    world.settle(over)
    found = executions.show(world.ctx, world.actor, execution=execution)
    assert found["status"] == "Succeeded", found["reason"]
    return {step["name"]: step for step in found["steps"]}


def test_steps_take_what_programs_left_and_a_result_that_is_known_is_taken_again(shop: World) -> None:
    pipelines.create(shop.ctx, shop.actor, spec=two_steps(shop))

    first = run(shop)
    assert first["good"]["outputs"]["result"]["value"] is True
    assert first["measure"]["outputs"]["evaluation"]["value"] == {"metrics": {"right": 0.9}}
    assert json.loads(get(shop, "s3://shop/report/evaluation.json")) == {"metrics": {"right": 0.9}}
    job = first["make"]["outputs"]["result"]["value"]["name"]
    assert scripts.show(shop.ctx, shop.actor, contract="processing", name=job)["status"] == "Succeeded"

    again = run(shop)
    assert [again[name]["cached_from"] for name in ("make", "measure")] == [first["make"]["execution"]] * 2
    assert again["good"]["outputs"]["result"]["value"] is True

    other = run(shop, right=0.2)
    assert [other[name]["cached_from"] for name in ("make", "measure")] == [None, None]
    assert other["good"]["outputs"]["result"]["value"] is False


def test_what_cannot_run_is_refused_at_once(shop: World) -> None:
    with pytest.raises(InvalidInput, match="nothing says what to run"):
        submit(shop, "empty", program="")
    with pytest.raises(InvalidInput, match="no regular expression"):
        submit(shop, "regex", metrics=[{"name": "loss", "regex": "("}])
    with pytest.raises(InvalidInput, match="below /opt/ml"):
        submit(shop, "paths", channels={"train": {"uri": "s3://shop/data/train", "path": "/etc"}})
    with pytest.raises(InvalidInput, match="hosts"):
        submit(shop, "many", hosts=100)
    submit(shop, "once")
    with pytest.raises(Conflict, match="already"):
        submit(shop, "once")
    ended(shop, "once")


def test_a_target_that_is_not_there_fails_the_job_before_it_runs(shop: World) -> None:
    submit(shop, "lost", output_uri="s3://nowhere/out")

    row = ended(shop, "lost")

    assert (row["status"], row["job"]) == ("Failed", None)
    assert "nowhere" in row["reason"]


def test_an_image_of_ones_own_counts_before_what_is_known(shop: World) -> None:
    with shop.ctx.db.read() as tx:
        known = images.choose(shop.ctx, tx, "123456789012.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.2-1")
        other = images.choose(shop.ctx, tx, "team/churn:3")
    assert "scikit-learn" in known.requirements and known.warning is None
    assert other.requirements == known.requirements and "team/churn" in str(other.warning)

    images.put(shop.ctx, shop.actor, image="team/churn", requirements="lightgbm\n")

    with shop.ctx.db.read() as tx:
        assert images.choose(shop.ctx, tx, "registry.example:5000/team/churn@sha256:ab").requirements == "lightgbm\n"
    images.delete(shop.ctx, shop.actor, image="team/churn")
    with pytest.raises(NotFound):
        images.delete(shop.ctx, shop.actor, image="team/churn")
