"""The packages behind the names of AWS's images: built, trained in script mode, and asked, as their containers do.

Slow, and needs packages of hundreds of megabytes: ``make images``.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from loopline.testing.live import Platform, until

pytestmark = pytest.mark.skipif(not os.environ.get("LOOPLINE_IMAGES"), reason="slow: run by `make images`")

Client = Callable[..., Any]
REGISTRY = "683313688378.dkr.ecr.us-east-1.amazonaws.com"
ROLE = "arn:aws:iam::123456789012:role/loopline-admin"
BUCKET = "wire-images"
BUILD_SECONDS = 1500.0
OVER = ("Completed", "Failed", "Stopped")

SKLEARN = """
import argparse, os
import joblib, pandas
from sklearn.linear_model import LinearRegression

parser = argparse.ArgumentParser()
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
args = parser.parse_args()
rows = pandas.read_csv(os.path.join(args.train, "rows.csv"), header=None)
model = LinearRegression().fit(rows[[0, 1]].to_numpy(), rows[2])
joblib.dump(model, os.path.join(args.model_dir, "model.joblib"))

def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))
"""
SKLEARN_SERVED = """
import joblib, os

def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))
"""
XGBOOST = """
import os
import pandas, xgboost

rows = pandas.read_csv(os.path.join(os.environ["SM_CHANNEL_TRAIN"], "rows.csv"), header=None)
table = xgboost.DMatrix(rows[[0, 1]].to_numpy(), label=rows[2])
settings = {"objective": "reg:squarederror", "booster": "gblinear", "eta": 0.7, "lambda": 0}
model = xgboost.train(settings, table, num_boost_round=200)
model.save_model(os.path.join(os.environ["SM_MODEL_DIR"], "model.ubj"))
"""
XGBOOST_SERVED = """
import os, xgboost

def model_fn(model_dir):
    model = xgboost.Booster()
    model.load_model(os.path.join(model_dir, "model.ubj"))
    return model
"""
TORCH = """
import os
import pandas, torch

rows = pandas.read_csv(os.path.join(os.environ["SM_CHANNEL_TRAIN"], "rows.csv"), header=None)
given = torch.tensor(rows[[0, 1]].to_numpy(), dtype=torch.float32)
wanted = torch.tensor(rows[[2]].to_numpy(), dtype=torch.float32)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=200, line_search_fn="strong_wolfe")

def loss():
    optimizer.zero_grad()
    off = torch.nn.functional.mse_loss(model(given), wanted)
    off.backward()
    return off

optimizer.step(loss)
torch.jit.script(model).save(os.path.join(os.environ["SM_MODEL_DIR"], "model.pt"))
"""
TRANSFORMERS = """
import os
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

folder = os.environ["SM_MODEL_DIR"]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
with open(os.path.join(folder, "vocab.txt"), "w") as file:
    file.write("\\n".join(words) + "\\n")
BertTokenizerFast(os.path.join(folder, "vocab.txt")).save_pretrained(folder)
config = BertConfig(
    vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    id2label={0: "down", 1: "up"}, label2id={"down": 0, "up": 1},
)
BertForSequenceClassification(config).save_pretrained(folder)
"""


@pytest.fixture(scope="module", autouse=True)
def ground(client: Client) -> None:
    """A bucket with rows of a, b, 3a - 2b + 1."""
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    rows = [(a, b, 3 * a - 2 * b + 1) for a in range(6) for b in range(6)]
    s3.put_object(Bucket=BUCKET, Key="train/rows.csv", Body="".join(f"{a},{b},{y}\n" for a, b, y in rows).encode())


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def trained(platform: Platform, client: Client, name: str, image: str, program: str) -> str:
    """The address of the model that a program in script mode made in the packages of an image."""
    key = f"{name}/source/sourcedir.tar.gz"
    client("s3").put_object(Bucket=BUCKET, Key=key, Body=zipped({"train.py": program}))
    sagemaker = client("sagemaker")
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/train"}}
    sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": f"{REGISTRY}/{image}", "TrainingInputMode": "File"},
        HyperParameters={
            "sagemaker_program": json.dumps("train.py"),
            "sagemaker_submit_directory": json.dumps(f"s3://{BUCKET}/{key}"),
        },
        InputDataConfig=[{"ChannelName": "train", "DataSource": source}],
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_training_job(TrainingJobName=name)
        return found if found["TrainingJobStatus"] in OVER else None

    found = until(look, f"the training {name} is over", BUILD_SECONDS, 1.0)
    log = platform.call("GET", f"/api/scripts/training/{name}/log")["text"]
    assert found["TrainingJobStatus"] == "Completed", (found.get("FailureReason"), log)
    return str(found["ModelArtifacts"]["S3ModelArtifacts"])


def answer(client: Client, name: str, container: dict[str, Any], body: str, content_type: str) -> Any:
    """What an endpoint of a model says."""
    sagemaker = client("sagemaker")
    sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "all", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)

    def serves() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=name)
        return found if found["EndpointStatus"] in ("InService", "Failed") else None

    found = until(serves, f"the endpoint {name} answers", BUILD_SECONDS, 1.0)
    assert found["EndpointStatus"] == "InService", found
    told = client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, ContentType=content_type, Accept="application/json", Body=body
    )
    said = json.loads(told["Body"].read())
    sagemaker.delete_endpoint(EndpointName=name)
    return said


def test_scikit_learn(platform: Platform, client: Client) -> None:
    image = "sagemaker-scikit-learn:1.2-1-cpu-py3"
    model = trained(platform, client, "sk", image, SKLEARN)
    client("s3").put_object(Bucket=BUCKET, Key="sk/inference.tar.gz", Body=zipped({"inference.py": SKLEARN_SERVED}))
    variables = {
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": f"s3://{BUCKET}/sk/inference.tar.gz",
    }
    container = {"Image": f"{REGISTRY}/{image}", "ModelDataUrl": model, "Environment": variables}

    assert answer(client, "sk", container, "1,1\n5,0\n", "text/csv") == pytest.approx([2, 16])


@pytest.mark.parametrize("own", [True, False])
def test_xgboost(platform: Platform, client: Client, own: bool) -> None:
    image, name = "sagemaker-xgboost:1.7-1", f"xgb-{int(own)}"
    model = trained(platform, client, name, image, XGBOOST)
    container: dict[str, Any] = {"Image": f"{REGISTRY}/{image}", "ModelDataUrl": model}
    if own:
        client("s3").put_object(
            Bucket=BUCKET, Key="xgb/inference.tar.gz", Body=zipped({"inference.py": XGBOOST_SERVED})
        )
        container["Environment"] = {
            "SAGEMAKER_PROGRAM": "inference.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": f"s3://{BUCKET}/xgb/inference.tar.gz",
        }

    given = ("0:1 1:1\n0:5 1:0\n", "text/libsvm") if own else ("1,1\n5,0\n", "text/csv")
    assert answer(client, name, container, *given) == pytest.approx([2, 16], abs=0.05)


def test_pytorch(platform: Platform, client: Client) -> None:
    model = trained(platform, client, "pt", "pytorch-training:2.3-cpu-py311", TORCH)
    container = {"Image": f"{REGISTRY}/pytorch-inference:2.3-cpu-py311", "ModelDataUrl": model}

    said = answer(client, "pt", container, "[[1, 1], [5, 0]]", "application/json")

    assert [row[0] for row in said] == pytest.approx([2, 16], abs=0.05)


def test_huggingface(platform: Platform, client: Client) -> None:
    model = trained(platform, client, "hf", "huggingface-pytorch-training:2.1-transformers4.36-cpu-py310", TRANSFORMERS)
    container = {
        "Image": f"{REGISTRY}/huggingface-pytorch-inference:2.1-transformers4.37-cpu-py310",
        "ModelDataUrl": model,
        "Environment": {"HF_TASK": "text-classification"},
    }

    said = answer(client, "hf", container, json.dumps({"inputs": "good film"}), "application/json")

    assert [each["label"] in ("up", "down") for each in said] == [True], said
