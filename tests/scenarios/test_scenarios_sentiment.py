"""The system of examples/sagemaker-sentiment, as its user runs it: each script by itself, with the SageMaker SDK 2.257
from an environment of its own (`make clients`), on an installation that refuses what AWS would refuse."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "sagemaker-sentiment"
PYTHON = ROOT / ".clients" / "sagemaker2" / "bin" / "python"
REAL_AWS = Path(__file__).with_name("real_aws.py")
GROUP, ENDPOINT, PIPELINE = "mlops-sentiment-model-group", "mlops-sentiment-endpoint", "mlops-sentiment-pipeline"
SECONDS = 600
GOOD, BAD = "A wonderful film, I loved every minute of it.", "太無聊了,演技很差,浪費時間。"
with_sdk = pytest.mark.skipif(not PYTHON.exists(), reason="the SageMaker SDK is not there: make clients")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    installation = Platform(tmp_path_factory.mktemp("sentiment") / "loopline", aws_strict=1)
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def environ(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `eval "$(loopline env)"` makes of a shell whose `python` has the SDK."""
    values = json.loads(platform.cli("env", "--json").stdout)
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path_factory.mktemp("home")), "PYTHONDONTWRITEBYTECODE": "1", **values}


def shell(environ: dict[str, str], command: str, code: int = 0) -> str:
    """What a command prints that is typed in the example's folder."""
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=EXAMPLE,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def decide(environ: dict[str, str], number: int, status: str) -> None:
    """A person's decision, by the SDK's client."""
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:model-package/{GROUP}/{number}"
    call = f"update_model_package(ModelPackageArn='{arn}', ModelApprovalStatus='{status}')"
    shell(environ, f"python -c \"import boto3; boto3.client('sagemaker').{call}\"")


def versions(platform: Platform) -> dict[int, dict[str, Any]]:
    found = platform.call("GET", f"/api/models/{GROUP}/versions")["items"]
    return {row["number"]: row for row in found}


def served(platform: Platform) -> list[tuple[int, float]]:
    """The versions that have traffic, and their shares."""
    said = json.loads(platform.cli("live", "--endpoint", ENDPOINT, "--json").stdout)
    return [(row["version"], row["share"]) for row in said["items"]]


def labels(said: str) -> list[str]:
    return [line.split()[0] for line in said.splitlines()]


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same reviews with a third of the training labels the wrong way round."""
    folder = tmp_path_factory.mktemp("worse")
    (folder / "test.csv").write_bytes((EXAMPLE / "reviews" / "test.csv").read_bytes())
    with (EXAMPLE / "reviews" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    turned = {"positive": "negative", "negative": "positive"}
    for row in rows[::3]:
        row["label"] = turned[row["label"]]
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["label", "language", "text"])
        table.writeheader()
        table.writerows(rows)
    return folder


@with_sdk
def test_the_scripts_do_one_by_one_what_they_say(platform: Platform, environ: dict[str, str], worse: Path) -> None:
    assert shell(environ, "python 01_model_registry.py").splitlines()[-1] == "版本 1: [Approved]"
    assert shell(environ, "python 02_pipeline.py").splitlines()[-1] == "Succeeded"
    found = versions(platform)
    assert {number: (row["status"], row["verification"]) for number, row in found.items()} == {
        1: ("Approved", "claimed"),
        2: ("PendingManualApproval", "claimed"),
    }
    assert 0.75 < found[2]["metrics"]["accuracy"] < 0.95

    said = shell(environ, "python deploy_if_approved.py")
    assert "版本 2: [PendingManualApproval]" in said
    assert ENDPOINT not in {row["name"] for row in platform.call("GET", "/api/endpoints")["items"]}

    decide(environ, 2, "Approved")
    assert f"{ENDPOINT} serves mlops-sentiment-v2-" in shell(environ, "python deploy_if_approved.py")
    assert served(platform) == [(2, 1.0)]
    assert labels(shell(environ, f'python predict.py "{GOOD}" "{BAD}"')) == ["positive", "negative"]
    assert "serves it already" in shell(environ, "python deploy_if_approved.py")

    said = shell(environ, f'python 02_pipeline.py --reviews "{worse}" --name worse')
    assert said.splitlines()[-1] == "Succeeded"
    assert versions(platform)[3]["metrics"]["accuracy"] < found[2]["metrics"]["accuracy"] - 0.02
    decide(environ, 3, "Approved")
    assert f"{ENDPOINT} serves mlops-sentiment-v3-" in shell(environ, "python deploy_if_approved.py")
    decide(environ, 3, "Rejected")
    decide(environ, 2, "Rejected")
    assert f"{ENDPOINT} serves mlops-sentiment-v1-" in shell(environ, "python deploy_if_approved.py")
    assert served(platform) == [(1, 1.0)]


@with_sdk
def test_alarms_and_dashboard_are_kept(platform: Platform, environ: dict[str, str]) -> None:
    said = shell(environ, "python 05_cloudwatch_alarms.py").splitlines()
    assert {line.split(":")[0] for line in said} == {
        f"mlops-sentiment-{name}" for name in ("high-latency", "high-error-rate", "no-traffic")
    }
    assert shell(environ, "python 06_dashboard.py").splitlines()[0] == "推論延遲(P50 / P90 / P99)"

    assert "mlops-sentiment-no-traffic" in platform.cli("alarms", "list").stdout
    assert "MLOps-SentimentEndpoint" in platform.cli("dashboards", "list").stdout
    assert "mlops-sentiment" not in platform.cli("alarms", "lint").stdout
    assert "mlops-sentiment-alarms" in platform.cli("topics", "list").stdout


@with_sdk
def test_what_ci_runs_triggers_waits_and_deploys(environ: dict[str, str]) -> None:
    shell(environ, "python 02_pipeline.py --define-only")
    jenkins = (EXAMPLE / "04b_jenkins_pipeline.groovy").read_text()
    commands = "\n".join(one or other for one, other in re.findall(r"sh (?:'''(.*?)'''|'(.*?)')", jenkins, re.S))
    lines = [line.strip() for line in commands.splitlines() if line.strip()]
    assert lines[0].startswith("pip install ")
    said = shell(environ, "\n".join(lines[1:]))
    assert f":pipeline/{PIPELINE}/execution/" in said
    assert "RegisterModel-RegisterModel: Succeeded" in said
    assert "[PendingManualApproval]; nothing is deployed" in said

    script = (
        "import json, yaml; print(json.dumps(yaml.safe_load(open('04a_bitbucket_pipeline.yml'))['pipelines']"
        "['branches']['main'][0]['step']['script']))"
    )
    steps = json.loads(shell(environ, f'python -c "{script}"'))
    assert steps[0].startswith("pip install ")
    said = shell(environ, "\n".join(steps[1:]))
    assert re.search(rf"Pipeline started: arn:aws:\S+/{PIPELINE}/execution/", said)
    assert "Pipeline Succeeded" in said


@with_sdk
def test_nothing_of_it_is_anything_that_aws_would_refuse(
    platform: Platform, environ: dict[str, str], tmp_path: Path
) -> None:
    """Without AWS_ENDPOINT_URL and without loopline's module, every request goes to AWS and keeps to its models."""
    seen = tmp_path / "seen"
    given = {name: value for name, value in environ.items() if name not in ("AWS_ENDPOINT_URL", "PYTHONPATH")}
    given |= {"REAL_AWS_STANDS_IN": platform.url, "REAL_AWS_SEEN": str(seen)}
    run = f'python "{REAL_AWS}"'
    shell(given, f"{run} 01_model_registry.py")
    shell(given, f"{run} 02_pipeline.py")
    shell(given, f"{run} trigger_pipeline.py")
    shell(given, f"{run} wait_for_pipeline.py")
    newest = max(versions(platform))
    for number in (newest, newest - 1):
        decide(environ, number, "Approved")
    shell(given, f"{run} deploy_if_approved.py")
    assert labels(shell(given, f'{run} predict.py "{GOOD}"')) == ["positive"]
    shell(given, f"{run} 05_cloudwatch_alarms.py")
    shell(given, f"{run} 06_dashboard.py")

    requests = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [request for request in requests if request["problems"]] == []
    assert [request for request in requests if not request["host"].endswith(".amazonaws.com")] == []
    asked = {request["operation"] for request in requests}
    assert {
        "sagemaker.CreateModelPackage",
        "sagemaker.CreatePipeline",
        "sagemaker.StartPipelineExecution",
        "sagemaker.CreateEndpointConfig",
        "sagemaker-runtime.InvokeEndpoint",
        "cloudwatch.PutMetricAlarm",
        "cloudwatch.PutDashboard",
        "sts.GetCallerIdentity",
    } <= asked
    assert platform.call("GET", "/api/warnings")["items"] == []


@with_sdk
def test_the_folders_of_imdb_become_the_same_two_files(
    platform: Platform, environ: dict[str, str], tmp_path: Path
) -> None:
    for part in ("train", "test"):
        for name, text in (("pos", 'Great, "really" great.\nAnd long.'), ("neg", "Awful, sadly.")):
            folder = tmp_path / "aclImdb" / part / name
            folder.mkdir(parents=True)
            (folder / "0_9.txt").write_text(text)
    said = shell({**environ, "IMDB_DIR": str(tmp_path / "aclImdb")}, "python upload_reviews.py").split()[-1]
    fetched = platform.cli("objects", "get", f"{said}/test/reviews.csv", "-o", str(tmp_path / "reviews.csv"))
    assert fetched.returncode == 0, fetched.stderr
    with (tmp_path / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["language"], row["text"]) for row in rows] == [
        ("positive", "en", 'Great, "really" great.\nAnd long.'),
        ("negative", "en", "Awful, sadly."),
    ]


def test_doctor_finds_nothing_in_the_scripts(platform: Platform) -> None:
    scripts = sorted(str(path) for path in EXAMPLE.glob("*.py"))
    done = platform.cli("doctor", *scripts, str(EXAMPLE / "04a_bitbucket_pipeline.yml"))
    assert done.returncode == 0, done.stdout


# -- without the SDK ---------------------------------------------------------------------------------------------------


def trained(folder: Path, train: Path) -> dict[str, float]:
    """The figures that train.py prints, run as the container runs it."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "train" / "train.py"), "--num_train_samples", "2000"],
        env={
            "PATH": os.environ["PATH"],
            "SM_CHANNEL_TRAIN": str(train),
            "SM_CHANNEL_TEST": str(folder.parent / "test"),
            "SM_MODEL_DIR": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in re.findall(r"(\w+)=([0-9.]+);", done.stdout)}


def test_the_classifier_learns_both_languages_and_less_from_worse_data(tmp_path: Path, worse: Path) -> None:
    for name, path in (
        ("train", EXAMPLE / "reviews" / "train.csv"),
        ("test", EXAMPLE / "reviews" / "test.csv"),
        ("worse", worse / "train.csv"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "reviews.csv").write_bytes(path.read_bytes())

    good = trained(tmp_path / "model", tmp_path / "train")
    bad = trained(tmp_path / "other", tmp_path / "worse")

    assert good["train_samples"] == bad["train_samples"] == 516
    assert 0.75 < good["eval_accuracy"] < 0.95
    assert bad["eval_accuracy"] < good["eval_accuracy"] - 0.02
    ask = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import inference as i; m = i.model_fn(sys.argv[2]);"
        "print(*(i.output_fn(i.predict_fn(i.input_fn(b, 'application/json'), m), '*/*')[0] for b in sys.argv[3:]),"
        "sep='\\n')"
    )
    bodies = [json.dumps({"inputs": [GOOD, BAD]}), json.dumps({"inputs": GOOD}), json.dumps([{"text": BAD}])]
    argv = [sys.executable, "-B", "-c", ask, str(EXAMPLE / "train"), str(tmp_path / "model"), *bodies]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.splitlines()
    both, one, rows = map(json.loads, said)
    assert [each["label"] for each in both] == ["positive", "negative"]
    assert one == both[:1]
    assert 0.5 < one[0]["score"] <= 1
    assert rows == ["negative"]


def test_the_reviews_are_what_their_page_says() -> None:
    parts = {}
    for name in ("train", "test"):
        with (EXAMPLE / "reviews" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            parts[name] = list(csv.DictReader(file))
    rows = parts["train"] + parts["test"]
    assert (len(parts["train"]), len(parts["test"])) == (516, 172)
    assert len({row["text"] for row in rows}) == len(rows)
    for row in ("positive", "negative"), ("en", "zh"):
        column = "label" if "positive" in row else "language"
        assert {value: sum(each[column] == value for each in rows) for value in row} == dict.fromkeys(row, 344)

    def runs(text: str) -> set[str]:
        return {text[at : at + 3].lower() for at in range(len(text) - 2)}

    train = [runs(row["text"]) for row in parts["train"]]
    for row in parts["test"]:
        own = runs(row["text"])
        assert max(len(own & other) / len(own | other) for other in train) < 0.3, row["text"]


def test_the_difference_to_the_document_applies_both_ways_and_every_part_of_it_has_its_reason(tmp_path: Path) -> None:
    lines = (EXAMPLE / "seed.diff").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = [at for at, line in enumerate(lines) if line.startswith("@@ ")]
    assert len(parts) > 30
    without = [lines[at] for at in parts if not re.match(r"# \S+ \S+", lines[at - 1])]
    assert without == []
    patch = tmp_path / "plain.diff"
    patch.write_text("".join(line for line in lines if not line.startswith("#")), encoding="utf-8")
    named = {line.split()[1].split("/", 1)[1] for line in lines if line.startswith("+++ b/")}
    here = tmp_path / "here"
    here.mkdir()
    for name in named:
        (here / name).write_bytes((EXAMPLE / name).read_bytes())

    def apply(*options: str) -> None:
        subprocess.run(
            ["git", "apply", "--unidiff-zero", *options, str(patch)],
            cwd=here,
            check=True,
            capture_output=True,
            timeout=60,
        )

    apply("-R")
    assert {path.name for path in here.iterdir()} == named | {"03_api_gateway.py"}
    assert 'Statistic=alarm.get("statistic", "Average")' in (here / "05_cloudwatch_alarms.py").read_text()
    apply()
    assert {path.name for path in here.iterdir()} == named
    for name in named:
        assert (here / name).read_bytes() == (EXAMPLE / name).read_bytes()
