"""The model registry, asked by boto3; what comes of it is looked at through loopline's own API and command line."""

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Answer, Platform, until

ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"
GROUP_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:model-package-group"
PACKAGE_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:model-package"
BUCKET = "registry-models"
INFERENCE = """
import json, pathlib

def model_fn(model_dir):
    return (pathlib.Path(model_dir) / "word.txt").read_text()

def input_fn(data, content_type):
    return json.loads(data)

def predict_fn(data, model):
    if isinstance(data, list):
        return [model for row in data]
    return {"word": model, "of": data["text"]}

def output_fn(prediction, accept):
    return json.dumps(prediction), accept
"""


@pytest.fixture(scope="module")
def sagemaker(client: Callable[..., Any], platform: Platform) -> Any:
    """boto3's client; the image ``plain`` needs no package."""
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    return client("sagemaker")


@pytest.fixture(scope="module")
def s3(client: Callable[..., Any]) -> Any:
    found = client("s3")
    found.create_bucket(Bucket=BUCKET)
    return found


def model_files(word: str) -> bytes:
    """A model.tar.gz whose answers say ``word``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in (("word.txt", word), ("code/inference.py", INFERENCE)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def containers(uri: str | None) -> dict[str, Any]:
    """An inference specification of one container."""
    container = {"Image": IMAGE, "Environment": {"SAGEMAKER_PROGRAM": "inference.py"}}
    return {
        "Containers": [container if uri is None else {**container, "ModelDataUrl": uri}],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
        "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large"],
    }


def refused(call: Callable[..., Any], **given: Any) -> tuple[str, str]:
    """(code, message) of a call that is refused."""
    with pytest.raises(ClientError) as caught:
        call(**given)
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def bare(sagemaker: Any, group: str, count: int = 1, **given: Any) -> list[str]:
    """The ARNs of packages that are words alone, in a group of their own."""
    sagemaker.create_model_package_group(ModelPackageGroupName=group)
    return [
        sagemaker.create_model_package(ModelPackageGroupName=group, ModelPackageDescription=f"number {n + 1}", **given)[
            "ModelPackageArn"
        ]
        for n in range(count)
    ]


def version(platform: Platform, group: str, number: int) -> dict[str, Any]:
    """A version through loopline's own API."""
    found: dict[str, Any] = platform.call("GET", f"/api/models/{group}/versions/{number}")
    return found


# -- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_a_registered_model_whose_gate_is_advisory(sagemaker: Any, platform: Platform) -> None:
    made = sagemaker.create_model_package_group(
        ModelPackageGroupName="churn-models",
        ModelPackageGroupDescription="who leaves",
        Tags=[{"Key": "team", "Value": "risk"}],
    )
    assert made["ModelPackageGroupArn"] == f"{GROUP_ARN}/churn-models"
    native = platform.call("GET", "/api/models/churn-models")
    assert (native["gate_mode"], native["description"]) == ("advisory", "who leaves")
    assert platform.call("GET", "/api/tags/model/churn-models")["items"] == [{"key": "team", "value": "risk"}]
    for name in ("churn-models", f"{GROUP_ARN}/churn-models"):
        shown = sagemaker.describe_model_package_group(ModelPackageGroupName=name)
        assert shown["ModelPackageGroupDescription"] == "who leaves"
        assert shown["ModelPackageGroupStatus"] == "Completed"
        assert abs(shown["CreationTime"].timestamp() - native_seconds(native["created_at"])) < 1


def native_seconds(moment: Any) -> float:
    """A time of loopline's API in seconds."""
    if isinstance(moment, str):
        return datetime.fromisoformat(moment).timestamp()
    return float(moment)


def test_groups_that_are_there_or_are_not_are_told_in_the_words_that_scripts_look_for(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="twice")
    code, text = refused(sagemaker.create_model_package_group, ModelPackageGroupName="twice")
    assert code == "ValidationException" and "Model Package Group already exists" in text
    code, text = refused(sagemaker.describe_model_package_group, ModelPackageGroupName="nobody")
    assert code == "ValidationException" and text == f"ModelPackageGroup {GROUP_ARN}/nobody does not exist."
    code, text = refused(sagemaker.delete_model_package_group, ModelPackageGroupName="nobody")
    assert code == "ValidationException" and "does not exist" in text
    code, text = refused(
        sagemaker.create_model_package, ModelPackageGroupName="nobody", InferenceSpecification=containers(None)
    )
    assert (code, text) == ("ValidationException", "Model Package Group does not exist.")


def test_a_group_goes_when_it_is_empty(sagemaker: Any, platform: Platform) -> None:
    (arn,) = bare(sagemaker, "passing")
    code, text = refused(sagemaker.delete_model_package_group, ModelPackageGroupName="passing")
    assert code == "ConflictException" and "delete them first" in text
    sagemaker.delete_model_package(ModelPackageName=arn)
    sagemaker.delete_model_package_group(ModelPackageGroupName="passing")
    assert platform.ask("GET", "/api/models/passing").status == 404


def test_groups_are_listed_by_name_and_time_in_pages(sagemaker: Any) -> None:
    before = datetime.now(UTC)
    names = [f"paged-{letter}" for letter in "bca"]
    for name in names:
        sagemaker.create_model_package_group(ModelPackageGroupName=name)

    def listed(**given: Any) -> list[str]:
        pages = sagemaker.get_paginator("list_model_package_groups").paginate(
            NameContains="PAGED", PaginationConfig={"PageSize": 2}, **given
        )
        return [group["ModelPackageGroupName"] for page in pages for group in page["ModelPackageGroupSummaryList"]]

    assert listed(SortBy="Name", SortOrder="Ascending") == sorted(names)
    assert listed(SortBy="CreationTime", SortOrder="Ascending") == names
    assert listed() == names[::-1]
    assert listed(CreationTimeBefore=before) == [] and len(listed(CreationTimeAfter=before)) == 3


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_version_is_made_of_an_object_and_says_all_that_its_author_said(
    sagemaker: Any, s3: Any, platform: Platform
) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="sentiment")
    data = model_files("good")
    s3.put_object(Bucket=BUCKET, Key="one/model.tar.gz", Body=data)
    said = {
        "ModelPackageDescription": "DistilBERT fine-tuned, accuracy=0.84",
        "InferenceSpecification": containers(f"s3://{BUCKET}/one/model.tar.gz"),
        "CustomerMetadataProperties": {"accuracy": "0.84", "base_model": "distilbert-base-uncased"},
        "MetadataProperties": {"CommitId": "a" * 40, "GeneratedBy": "a script"},
        "Domain": "NATURAL_LANGUAGE_PROCESSING",
        "SourceUri": "https://example.com/model",
    }
    made = sagemaker.create_model_package(ModelPackageGroupName="sentiment", **said)
    assert made["ModelPackageArn"] == f"{PACKAGE_ARN}/sentiment/1"
    shown = sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"])
    assert {key: shown[key] for key in said} == said
    assert (shown["ModelPackageGroupName"], shown["ModelPackageVersion"]) == ("sentiment", 1)
    assert (shown["ModelPackageStatus"], shown["ModelApprovalStatus"]) == ("Completed", "PendingManualApproval")
    native = version(platform, "sentiment", 1)
    assert native["artifact"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert native["metadata"]["properties"]["accuracy"] == "0.84"
    assert native["handler"] == "sagemaker" and native["servable"]
    s3.put_object(Bucket=BUCKET, Key="one/model.tar.gz", Body=b"another")
    assert version(platform, "sentiment", 1)["artifact"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_nothing_is_registered_of_model_files_that_are_not_there(sagemaker: Any, s3: Any, platform: Platform) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="absent-data")
    code, text = refused(
        sagemaker.create_model_package,
        ModelPackageGroupName="absent-data",
        InferenceSpecification=containers(f"s3://{BUCKET}/nothing/model.tar.gz"),
    )
    assert code == "ValidationException" and "Could not find model data" in text
    assert platform.call("GET", "/api/models/absent-data/versions")["items"] == []
    code, text = refused(sagemaker.create_model_package, InferenceSpecification=containers(None))
    assert code == "ValidationException" and "Missing ARN" in text


def test_approval_is_kept_with_who_when_and_why(sagemaker: Any, platform: Platform) -> None:
    arns = bare(sagemaker, "listed", 3)
    for arn, status in zip(arns, ("Approved", "Rejected", "Approved"), strict=True):
        answer = sagemaker.update_model_package(
            ModelPackageArn=arn, ModelApprovalStatus=status, ApprovalDescription=f"because it is {status}"
        )
        assert answer["ModelPackageArn"] == arn
    found = sagemaker.list_model_packages(
        ModelPackageGroupName="listed", SortBy="CreationTime", SortOrder="Descending"
    )["ModelPackageSummaryList"]
    lines = [f"版本 {v['ModelPackageVersion']}: [{v['ModelApprovalStatus']}]" for v in found]
    assert lines == ["版本 3: [Approved]", "版本 2: [Rejected]", "版本 1: [Approved]"]
    native = version(platform, "listed", 2)
    assert (native["status"], native["decided_by"], native["comment"]) == (
        "Rejected",
        "admin",
        "because it is Rejected",
    )
    assert sagemaker.describe_model_package(ModelPackageName=arns[1])["ApprovalDescription"] == "because it is Rejected"
    sagemaker.update_model_package(ModelPackageArn=arns[1], ModelApprovalStatus="PendingManualApproval")
    assert version(platform, "listed", 2)["status"] == "PendingManualApproval"
    approved = sagemaker.list_model_packages(ModelPackageGroupName="listed", ModelApprovalStatus="Approved")
    assert [v["ModelPackageVersion"] for v in approved["ModelPackageSummaryList"]] == [3, 1]


def test_a_version_may_begin_as_approved_and_is_shown_as_unverified_everywhere(
    sagemaker: Any, platform: Platform
) -> None:
    (arn,) = bare(sagemaker, "trusting", ModelApprovalStatus="Approved")
    native = version(platform, "trusting", 1)
    assert (native["status"], native["verification"]) == ("Approved", "unverified")
    listed = platform.call("GET", "/api/models/trusting/versions")["items"]
    assert [row["verification"] for row in listed] == ["unverified"]
    command = "loopline versions evaluate trusting 1"
    (summary,) = sagemaker.list_model_packages(ModelPackageGroupName="trusting")["ModelPackageSummaryList"]
    assert summary["ModelLifeCycle"]["StageStatus"] == "unverified"
    assert command in summary["ModelLifeCycle"]["StageDescription"]
    (validation,) = sagemaker.describe_model_package(ModelPackageName=arn)["ModelPackageStatusDetails"][
        "ValidationStatuses"
    ]
    assert validation["Status"] == "NotStarted" and command in validation["FailureReason"]
    for argv in (("versions", "list", "trusting"), ("versions", "show", "trusting", "1")):
        shown = platform.cli(*argv)
        assert shown.returncode == 0 and "unverified" in shown.stdout, shown


def test_lists_are_sorted_filtered_and_paged(sagemaker: Any) -> None:
    bare(sagemaker, "many", 5)
    between = datetime.now(UTC)
    time.sleep(0.01)
    sagemaker.create_model_package(ModelPackageGroupName="many", ModelPackageDescription="late")

    def numbers(**given: Any) -> list[int]:
        pages = sagemaker.get_paginator("list_model_packages").paginate(
            ModelPackageGroupName="many", PaginationConfig={"PageSize": 2}, **given
        )
        return [each["ModelPackageVersion"] for page in pages for each in page["ModelPackageSummaryList"]]

    assert numbers() == [6, 5, 4, 3, 2, 1]
    assert numbers(SortBy="Name", SortOrder="Ascending") == [1, 2, 3, 4, 5, 6]
    assert numbers(CreationTimeAfter=between) == [6]
    assert numbers(CreationTimeBefore=between, SortOrder="Ascending") == [1, 2, 3, 4, 5]
    assert numbers(NameContains="absent") == []
    first = sagemaker.list_model_packages(ModelPackageGroupName="many", MaxResults=4)
    assert len(first["ModelPackageSummaryList"]) == 4 and first["NextToken"]
    everywhere = sagemaker.list_model_packages(ModelPackageType="Versioned", NameContains="man", MaxResults=100)
    assert {each["ModelPackageGroupName"] for each in everywhere["ModelPackageSummaryList"]} == {"many"}
    assert sagemaker.list_model_packages()["ModelPackageSummaryList"] == []


def test_customer_metadata_is_added_to_changed_and_removed(sagemaker: Any, platform: Platform) -> None:
    (arn,) = bare(sagemaker, "properties", CustomerMetadataProperties={"a": "1", "b": "2"})
    sagemaker.update_model_package(
        ModelPackageArn=arn, CustomerMetadataProperties={"b": "3", "c": "4"}, CustomerMetadataPropertiesToRemove=["a"]
    )
    assert version(platform, "properties", 1)["metadata"]["properties"] == {"b": "3", "c": "4"}
    shown = sagemaker.describe_model_package(ModelPackageName=arn)
    assert shown["CustomerMetadataProperties"] == {"b": "3", "c": "4"}
    assert shown["ModelApprovalStatus"] == "PendingManualApproval"
    assert shown["LastModifiedTime"] > shown["CreationTime"]
    batch = sagemaker.batch_describe_model_package(ModelPackageArnList=[arn, f"{PACKAGE_ARN}/properties/9"])
    assert batch["ModelPackageSummaries"][arn]["ModelPackageDescription"] == "number 1"
    assert (
        "does not exist" in batch["BatchDescribeModelPackageErrorMap"][f"{PACKAGE_ARN}/properties/9"]["ErrorResponse"]
    )


def test_packages_that_are_not_there_are_told_as_aws_does(sagemaker: Any) -> None:
    bare(sagemaker, "shallow")
    gone = f"{PACKAGE_ARN}/shallow/7"
    for call, given in (
        (sagemaker.describe_model_package, {"ModelPackageName": gone}),
        (sagemaker.update_model_package, {"ModelPackageArn": gone, "ModelApprovalStatus": "Approved"}),
        (sagemaker.delete_model_package, {"ModelPackageName": gone}),
    ):
        assert refused(call, **given) == ("ValidationException", f"ModelPackage {gone} does not exist.")
    code, text = refused(sagemaker.list_model_packages, ModelPackageGroupName="nobody")
    assert code == "ValidationException" and "does not exist" in text


# -- what is claimed --------------------------------------------------------------------------------------------------

REPORT = {
    "binary_classification_metrics": {
        "accuracy": {"value": 0.91, "standard_deviation": "NaN"},
        "confusion_matrix": {"0": {"0": 40, "1": 4}},
        "receiver_operating_characteristic_curve": {"false_positive_rates": [0, 1]},
    }
}


def _metrics(key: str, digest: str | None = None) -> dict[str, Any]:
    source = {"ContentType": "application/json", "S3Uri": f"s3://{BUCKET}/{key}"}
    return {"ModelQuality": {"Statistics": source if digest is None else {**source, "ContentDigest": digest}}}


def test_figures_of_a_file_are_an_evaluation_that_is_claimed(sagemaker: Any, s3: Any, platform: Platform) -> None:
    body = json.dumps(REPORT).encode()
    s3.put_object(Bucket=BUCKET, Key="reports/evaluation.json", Body=body)
    (arn,) = bare(sagemaker, "claiming", ModelMetrics=_metrics("reports/evaluation.json"))
    native = version(platform, "claiming", 1)
    assert native["verification"] == "claimed" and native["metrics"] == {"accuracy": 0.91}
    (judged,) = native["evaluations"]
    assert judged["status"] == "Claimed" and judged["verdict"] is None
    assert judged["sources"]["model_quality"]["digest"] == hashlib.sha256(body).hexdigest()
    shown = sagemaker.describe_model_package(ModelPackageName=arn)
    assert shown["ModelMetrics"] == _metrics("reports/evaluation.json")
    assert shown["ModelLifeCycle"]["StageStatus"] == "claimed"
    told = platform.cli("versions", "show", "claiming", "1")
    assert "claimed" in told.stdout and "accuracy 0.91" in told.stdout, told
    status = platform.call("GET", "/api/status")
    (waiting,) = [row for row in status["waiting"] if row["model"] == "claiming"]
    assert waiting["verification"] == "claimed"


def test_a_report_that_cannot_be_read_leaves_the_version_unverified_and_says_so(
    sagemaker: Any, s3: Any, platform: Platform
) -> None:
    s3.put_object(Bucket=BUCKET, Key="reports/broken.json", Body=b"{no json")
    sagemaker.create_model_package_group(ModelPackageGroupName="mumbling")
    for key in ("reports/absent.json", "reports/broken.json"):
        answer = sagemaker.create_model_package(ModelPackageGroupName="mumbling", ModelMetrics=_metrics(key))
        warning = answer["ResponseMetadata"]["HTTPHeaders"]["x-loopline-warning"]
        assert "model_quality" in warning
    wrong = _metrics("reports/broken.json", f"sha256:{'0' * 64}")
    sagemaker.create_model_package(ModelPackageGroupName="mumbling", ModelMetrics=wrong)
    for number in (1, 2, 3):
        native = version(platform, "mumbling", number)
        assert (native["verification"], native["evaluations"], native["metrics"]) == ("unverified", [], {})
        assert "reports_unread" in [event["kind"] for event in native["history"]]


# -- search and tags --------------------------------------------------------------------------------------------------


def _found(sagemaker: Any, *filters: tuple[str, str, str] | tuple[str, str], **given: Any) -> list[str]:
    expression = {
        "Filters": [dict(zip(("Name", "Operator", "Value"), each, strict=False)) for each in filters],
        **given.pop("expression", {}),
    }
    resource = given.pop("Resource", "ModelPackage")
    answer = sagemaker.search(Resource=resource, SearchExpression=expression, MaxResults=100, **given)
    arn = "ModelPackageArn" if resource == "ModelPackage" else "ModelPackageGroupArn"
    return [each[resource][arn].rpartition(":")[2].partition("/")[2] for each in answer["Results"]]


def test_packages_are_searched_by_what_is_said_of_them(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="sought")
    for number, accuracy in enumerate(("0.7", "0.9", "0.95"), 1):
        arn = sagemaker.create_model_package(
            ModelPackageGroupName="sought",
            ModelPackageDescription=f"try {number}",
            CustomerMetadataProperties={"accuracy": accuracy, "data.set": "imdb"},
        )["ModelPackageArn"]
        if number > 1:
            sagemaker.update_model_package(
                ModelPackageArn=arn, ModelApprovalStatus="Approved", ApprovalDescription="good enough"
            )
    mine = ("ModelPackageGroupName", "Equals", "sought")
    ascending = {"SortBy": "ModelPackageVersion", "SortOrder": "Ascending"}
    better = ("CustomerMetadataProperties.accuracy", "GreaterThanOrEqualTo", "0.9")
    assert _found(sagemaker, mine, better, **ascending) == ["sought/2", "sought/3"]
    assert _found(sagemaker, mine, ("ModelApprovalStatus", "NotEquals", "Approved")) == ["sought/1"]
    assert _found(sagemaker, mine, ("CustomerMetadataProperties.data.set", "Equals", "imdb"), **ascending) == [
        f"sought/{n}" for n in (1, 2, 3)
    ]
    assert _found(sagemaker, mine, ("ModelPackageDescription", "Contains", "try 3")) == ["sought/3"]
    assert _found(sagemaker, mine, ("ModelPackageVersion", "In", "1, 3"), **ascending) == ["sought/1", "sought/3"]
    assert _found(sagemaker, mine, ("ApprovalDescription", "Exists"), **ascending) == ["sought/2", "sought/3"]
    assert _found(sagemaker, mine, ("CreationTime", "GreaterThan", "2100-01-01T00:00:00")) == []
    either = {
        "SubExpressions": [
            {"Operator": "Or", "Filters": [{"Name": "ModelPackageVersion", "Value": str(n)} for n in (1, 2)]}
        ]
    }
    assert _found(sagemaker, mine, expression=either, **ascending) == ["sought/1", "sought/2"]


def test_a_search_is_paged_and_refuses_what_it_does_not_know(sagemaker: Any) -> None:
    bare(sagemaker, "paged-search", 3)
    expression = {"Filters": [{"Name": "ModelPackageGroupName", "Operator": "Equals", "Value": "paged-search"}]}
    pages = list(
        sagemaker.get_paginator("search").paginate(
            Resource="ModelPackage", SearchExpression=expression, PaginationConfig={"PageSize": 2}
        )
    )
    assert [len(page["Results"]) for page in pages] == [2, 1] and pages[0]["TotalHits"]["Value"] == 3
    code, text = refused(
        sagemaker.search, Resource="ModelPackage", SearchExpression={"Filters": [{"Name": "Colour", "Value": "red"}]}
    )
    assert code == "ValidationException" and "Colour" in text
    code, text = refused(sagemaker.search, Resource="FeatureGroup")
    assert code == "ValidationException" and "FeatureGroup" in text


def test_tags_are_put_listed_searched_and_taken_off(sagemaker: Any, platform: Platform) -> None:
    (package,) = bare(sagemaker, "tagged")
    group = f"{GROUP_ARN}/tagged"
    for arn in (group, package):
        put = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "bank"}, {"Key": "tier", "Value": ""}])
        assert {tag["Key"] for tag in put["Tags"]} == {"team", "tier"}
    sagemaker.add_tags(ResourceArn=package, Tags=[{"Key": "team", "Value": "growth"}])
    assert platform.call("GET", "/api/tags/version/tagged:1")["items"][0] == {"key": "team", "value": "growth"}
    assert _found(sagemaker, ("Tags.team", "Equals", "bank"), Resource="ModelPackageGroup") == ["tagged"]
    assert _found(sagemaker, ("Tags.team", "Equals", "growth")) == ["tagged/1"]
    sagemaker.delete_tags(ResourceArn=group, TagKeys=["tier", "never"])
    assert sagemaker.list_tags(ResourceArn=group)["Tags"] == [{"Key": "team", "Value": "bank"}]
    pages = sagemaker.get_paginator("list_tags").paginate(ResourceArn=package)
    assert [tag["Key"] for page in pages for tag in page["Tags"]] == ["team", "tier"]
    code, text = refused(sagemaker.list_tags, ResourceArn=f"{GROUP_ARN}/nobody")
    assert code == "ValidationException" and "does not exist" in text
    code, text = refused(sagemaker.add_tags, ResourceArn=group, Tags=[{"Key": "aws:mine", "Value": "x"}])
    assert code == "ValidationException" and "aws:" in text
    told = platform.cli("tags", "set", "model", "tagged", "owner=ann")
    assert "ann" in told.stdout, told
    assert {"Key": "owner", "Value": "ann"} in sagemaker.list_tags(ResourceArn=group)["Tags"]


def test_training_jobs_are_searched_by_what_they_measured_and_tagged(sagemaker: Any, s3: Any) -> None:
    packed = io.BytesIO()
    program = b"import os\nprint('limit=6.5')\nopen(os.environ['SM_MODEL_DIR'] + '/m', 'w').close()\n"
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("train.py")
        entry.size = len(program)
        tar.addfile(entry, io.BytesIO(program))
    s3.put_object(Bucket=BUCKET, Key="job/sourcedir.tar.gz", Body=packed.getvalue())
    hyperparameters = {"sagemaker_program": "train.py", "shift": "1"}
    hyperparameters["sagemaker_submit_directory"] = f"s3://{BUCKET}/job/sourcedir.tar.gz"
    metrics = [{"Name": "limit", "Regex": "limit=([0-9.]+)"}]
    arn = sagemaker.create_training_job(
        TrainingJobName="sought-job",
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File", "MetricDefinitions": metrics},
        HyperParameters={key: json.dumps(value) for key, value in hyperparameters.items()},
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/trainer",
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        Tags=[{"Key": "purpose", "Value": "search"}],
    )["TrainingJobArn"]
    until(
        lambda: _training(sagemaker, ("TrainingJobStatus", "Equals", "Completed")) == ["sought-job"], "it trained", 60
    )
    for each in (
        ("Metrics.limit", "GreaterThan", "6"),
        ("HyperParameters.shift", "Contains", "1"),
        ("Tags.purpose", "Equals", "search"),
    ):
        assert _training(sagemaker, each) == ["sought-job"], each
    assert _training(sagemaker, ("Metrics.limit", "LessThan", "6")) == []
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "purpose", "Value": "search"}]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "kept", "Value": "yes"}])
    assert _training(sagemaker, ("Tags.kept", "Exists")) == ["sought-job"]


def _training(sagemaker: Any, condition: tuple[str, ...]) -> list[str]:
    expression = {"Filters": [dict(zip(("Name", "Operator", "Value"), condition, strict=False))]}
    found = sagemaker.search(Resource="TrainingJob", SearchExpression=expression)["Results"]
    return [each["TrainingJob"]["TrainingJobName"] for each in found]


# -- what is deployed -------------------------------------------------------------------------------------------------


def test_who_may_not_approve_natively_may_not_by_aws_and_nothing_is_left(
    client: Callable[..., Any], platform: Platform, sagemaker: Any
) -> None:
    platform.call("POST", "/api/users", {"name": "eve", "role": "editor"})
    key = platform.call("POST", "/api/access-keys", {"name": "eves", "user": "eve"})
    editor = client("sagemaker", key)
    editor.create_model_package_group(ModelPackageGroupName="eves")
    arn = editor.create_model_package(ModelPackageGroupName="eves")["ModelPackageArn"]
    given = {"CustomerMetadataProperties": {"a": "1"}, "ModelApprovalStatus": "Approved"}
    assert refused(editor.update_model_package, ModelPackageArn=arn, **given)[0] == "AccessDeniedException"
    assert version(platform, "eves", 1)["metadata"]["properties"] == {}
    code, _ = refused(editor.create_model_package, ModelPackageGroupName="eves", ModelApprovalStatus="Approved")
    assert code == "AccessDeniedException"
    assert platform.call("GET", "/api/models/eves")["last_version"] == 1


def word(platform: Platform, endpoint: str) -> str | None:
    """What the version that serves answers."""
    answer: Answer = platform.predict({"text": "fine"}, endpoint)
    return str(answer.json["word"]) if answer.status == 200 else None


def test_an_endpoint_that_follows_a_group_goes_back_when_an_older_version_is_approved_again(
    sagemaker: Any, s3: Any, platform: Platform
) -> None:
    group = endpoint = "followed"
    sagemaker.create_model_package_group(ModelPackageGroupName=group)
    for number in (1, 2, 3):
        s3.put_object(Bucket=BUCKET, Key=f"f/{number}.tar.gz", Body=model_files(f"v{number}"))
        uri = f"s3://{BUCKET}/f/{number}.tar.gz"
        sagemaker.create_model_package(ModelPackageGroupName=group, InferenceSpecification=containers(uri))
    rollout = {"strategy": "all-at-once", "bake_seconds": 0.5}
    platform.call("POST", "/api/endpoints", {"name": endpoint, "settings": {"rollout": rollout}})
    told = platform.cli("endpoints", "follow", endpoint, group)
    assert told.returncode == 0, told
    assert platform.call("GET", f"/api/endpoints/{endpoint}")["follows"] == group

    def decide(number: int, status: str) -> None:
        arn = f"{PACKAGE_ARN}/{group}/{number}"
        sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus=status)

    def serves(expected: str) -> None:
        until(lambda: word(platform, endpoint) == expected, f"{expected} serves", 120)
        until(lambda: platform.call("GET", f"/api/endpoints/{endpoint}")["rollout"] is None, "it is over", 60)

    decide(1, "Approved")
    serves("v1")
    newest = platform.call("GET", f"/api/rollouts?endpoint={endpoint}")["items"][0]
    assert "loopline versions evaluate followed 1" in newest["plan"]["warnings"][0]
    assert "warned" in [event["kind"] for event in version(platform, group, 1)["history"]]
    (served,) = [each for each in platform.call("GET", "/api/status")["endpoints"] if each["name"] == endpoint]
    assert served["variants"][0]["verification"] == "unverified"
    assert "unverified" in platform.cli("status").stdout
    decide(2, "Rejected")
    decide(3, "Approved")
    serves("v3")
    code, text = refused(sagemaker.delete_model_package, ModelPackageName=f"{PACKAGE_ARN}/{group}/3")
    assert code == "ConflictException" and endpoint in text
    decide(3, "Rejected")
    assert word(platform, endpoint) == "v3"
    decide(1, "Approved")
    serves("v1")
    newest = platform.call("GET", f"/api/rollouts?endpoint={endpoint}")["items"][0]
    assert (newest["kind"], newest["status"]) == ("rollback", "Succeeded")
    assert "approved again" in newest["trigger"]["reason"]
    live = platform.call("GET", f"/api/live?endpoint={endpoint}")["items"]
    assert [(each["version"], each["share"]) for each in live] == [(1, 1.0)]


def test_an_enforced_gate_lets_approve_and_refuses_to_deploy_with_the_command_that_evaluates(
    sagemaker: Any, s3: Any, platform: Platform
) -> None:
    group = "strict"
    sagemaker.create_model_package_group(ModelPackageGroupName=group)
    platform.call("PUT", f"/api/models/{group}/gate-mode", {"mode": "enforce", "reason": "this one is for money"})
    platform.call("POST", "/api/endpoints", {"name": group, "model": group, "settings": {"deploy_on_approval": True}})
    s3.put_object(Bucket=BUCKET, Key="strict.tar.gz", Body=model_files("v1"))
    made = sagemaker.create_model_package(
        ModelPackageGroupName=group,
        InferenceSpecification=containers(f"s3://{BUCKET}/strict.tar.gz"),
        ModelApprovalStatus="Approved",
    )
    shown = sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"])
    assert shown["ModelApprovalStatus"] == "Approved"
    command = "loopline versions evaluate strict 1"

    def was_refused() -> str | None:
        history = version(platform, group, 1)["history"]
        return next((event["reason"] for event in history if event["kind"] == "release_refused"), None)

    assert command in until(was_refused, "the release is refused")
    assert platform.call("GET", f"/api/rollouts?endpoint={group}")["items"] == []
    answer = platform.ask("POST", f"/api/endpoints/{group}/release", {"number": 1})
    assert answer.error["code"] == "gate_refused" and command in answer.error["message"]
    s3.put_object(Bucket=BUCKET, Key="test.csv", Body=b"text,label\n" + b"fine,v1\nbad,v2\n" * 20)
    asked = ["test=" + f"s3://{BUCKET}/test.csv", "label=label", 'thresholds={"accuracy": 0.5}']
    settings = [part for each in asked for part in ("--set", each)]
    told = platform.cli("models", "gate", group, "enforce", "--reason", "measure it", *settings)
    assert told.returncode == 0, told

    def judged() -> str | None:
        told = platform.cli(*command.split()[1:])
        return told.stdout if told.returncode == 0 else None

    assert "accuracy 0.500 meets the threshold 0.500 (n=40)" in until(
        judged, "its files are there, and it is judged", 60
    )
    until(lambda: word(platform, group) == "v1", "what passed serves", 60)
    shown = sagemaker.describe_model_package(ModelPackageName=made["ModelPackageArn"])
    assert shown["ModelLifeCycle"]["StageStatus"] == "verified"
    assert shown["ModelPackageStatusDetails"]["ValidationStatuses"][0]["Status"] == "Completed"
