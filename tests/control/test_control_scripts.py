"""Scripts: a program gets what its container would have, and what it leaves becomes objects. The programs really run."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from loopline.control import buckets, images, objects, scripts, tracking
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


def submit(world: World, name: str, program: str = TRAIN, **more: Any) -> dict[str, Any]:
    put(world, f"code/{name}.tar.gz", packed({"train.py": program}))
    settings = {
        "contract": "training",
        "image": IMAGE,
        "code": f"s3://shop/code/{name}.tar.gz",
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
