"""CloudWatch, asked by boto3: metrics, alarms that fire and clear, dashboards; looked at through loopline's own API."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"
ENDPOINT = "watched"
ON_ENDPOINT = [{"Name": "EndpointName", "Value": ENDPOINT}, {"Name": "VariantName", "Value": "AllTraffic"}]
WARNING = "x-loopline-warning"
SCRIPT = """
import json

def model_fn(model_dir):
    return 2

def predict_fn(rows, model):
    if rows == "fail":
        raise RuntimeError("no such row")
    return [model * row for row in rows]
"""


@pytest.fixture(scope="module")
def cw(client: Callable[..., Any]) -> Any:
    return client("cloudwatch")


def code(call: Callable[..., Any], **given: Any) -> str:
    """The code that a call is refused with."""
    with pytest.raises(ClientError) as failure:
        call(**given)
    return str(failure.value.response["Error"]["Code"])


def window() -> dict[str, datetime]:
    now = datetime.now(UTC)
    return {"StartTime": now - timedelta(hours=1), "EndTime": now + timedelta(minutes=2)}


def state(cw: Any, name: str) -> str:
    (found,) = cw.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    return str(found["StateValue"])


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_what_is_put_is_read_natively_and_back(cw: Any, platform: Platform) -> None:
    at = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
    dimensions = [{"Name": "City", "Value": "台北"}]
    common = {"MetricName": "Orders", "Dimensions": dimensions, "Timestamp": at, "Unit": "Count"}
    cw.put_metric_data(
        Namespace="Shop",
        MetricData=[
            {**common, "Value": 3.0},
            {**common, "Values": [1.0, 2.0], "Counts": [2.0, 1.0]},
            {**common, "StatisticValues": {"SampleCount": 2, "Sum": 10, "Minimum": 4, "Maximum": 6}},
        ],
    )
    query = f"namespace=Shop&name=Orders&dimensions={quote('City=台北')}&statistics=Sum&statistics=SampleCount"
    (native,) = platform.call("GET", f"/api/metrics/read?{query}")["items"]
    assert (native["Sum"], native["SampleCount"]) == (17.0, 6.0)
    found = cw.get_metric_statistics(
        Namespace="Shop",
        MetricName="Orders",
        Dimensions=dimensions,
        Period=60,
        Statistics=["Sum", "Average", "Minimum", "Maximum", "SampleCount"],
        **window(),
    )
    (point,) = found["Datapoints"]
    assert point["Timestamp"] == at and point["Unit"] == "Count" and found["Label"] == "Orders"
    assert (point["Sum"], point["Minimum"], point["Maximum"], point["SampleCount"]) == (17.0, 1.0, 6.0, 6.0)
    assert point["Average"] == pytest.approx(17 / 6)


def test_percentiles_and_expressions(cw: Any) -> None:
    cw.put_metric_data(Namespace="Math", MetricData=[{"MetricName": "Ms", "Values": [float(n) for n in range(1, 101)]}])
    cw.put_metric_data(Namespace="Math", MetricData=[{"MetricName": "Errors", "Value": 5.0}])
    statistics = cw.get_metric_statistics(
        Namespace="Math", MetricName="Ms", Period=3600, ExtendedStatistics=["p50", "p99"], **window()
    )
    (point,) = statistics["Datapoints"]
    assert point["ExtendedStatistics"]["p99"] == pytest.approx(99, rel=0.02)

    def query(identifier: str, name: str, stat: str) -> dict[str, Any]:
        metric = {"Namespace": "Math", "MetricName": name, "Dimensions": []}
        return {"Id": identifier, "MetricStat": {"Metric": metric, "Period": 3600, "Stat": stat}, "ReturnData": False}

    found = cw.get_metric_data(
        MetricDataQueries=[
            query("errors", "Errors", "Sum"),
            query("count", "Ms", "SampleCount"),
            {"Id": "rate", "Expression": "100 * errors / count", "Label": "percent"},
        ],
        **window(),
    )
    (result,) = found["MetricDataResults"]
    assert (result["Id"], result["Label"], result["StatusCode"]) == ("rate", "percent", "Complete")
    assert result["Values"] == [pytest.approx(5.0)] and len(result["Timestamps"]) == 1


def test_metrics_are_listed_by_namespace_and_dimension_in_pages(cw: Any) -> None:
    for start in (0, 300):
        cw.put_metric_data(
            Namespace="Many",
            MetricData=[
                {"MetricName": "N", "Dimensions": [{"Name": "n", "Value": f"{n:04}"}], "Value": 1.0}
                for n in range(start, start + 300)
            ],
        )
    pages = list(cw.get_paginator("list_metrics").paginate(Namespace="Many"))
    assert [len(page["Metrics"]) for page in pages] == [500, 100]
    (one,) = cw.list_metrics(Namespace="Many", Dimensions=[{"Name": "n", "Value": "0123"}])["Metrics"]
    assert one == {"Namespace": "Many", "MetricName": "N", "Dimensions": [{"Name": "n", "Value": "0123"}]}
    assert cw.list_metrics(Namespace="None")["Metrics"] == []


def test_what_is_no_metric_is_refused(cw: Any) -> None:
    put, value = cw.put_metric_data, [{"MetricName": "x", "Value": 1.0}]
    assert code(put, Namespace="AWS/SageMaker", MetricData=value) == "InvalidParameterValue"
    assert code(put, Namespace="Shop", MetricData=[{"MetricName": "x"}]) == "InvalidParameterValue"
    old = [{**value[0], "Timestamp": datetime(2020, 1, 1, tzinfo=UTC)}]
    assert code(put, Namespace="Shop", MetricData=old) == "InvalidParameterValue"
    read = {"Namespace": "Shop", "MetricName": "x", "Period": 60, **window()}
    assert code(cw.get_metric_statistics, **read) == "MissingParameter"
    assert code(cw.get_metric_statistics, **read, ExtendedStatistics=["p101"]) == "InvalidParameterValue"


# -- alarms -----------------------------------------------------------------------------------------------------------


def test_an_alarm_on_what_is_put_fires_and_clears(cw: Any, platform: Platform) -> None:
    cw.put_metric_alarm(
        AlarmName="queue is long",
        AlarmDescription="Too many wait.",
        Namespace="Shop",
        MetricName="Waiting",
        Statistic="Maximum",
        Period=10,
        EvaluationPeriods=1,
        Threshold=100,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
    )
    assert state(cw, "queue is long") == "INSUFFICIENT_DATA"

    def put_until(value: float, wanted: str) -> None:
        def look() -> bool:
            datum = {"MetricName": "Waiting", "Value": value, "StorageResolution": 1}
            cw.put_metric_data(Namespace="Shop", MetricData=[datum])
            return state(cw, "queue is long") == wanted

        until(look, f"the alarm is {wanted}", 90.0, pause=0.5)

    put_until(150.0, "ALARM")
    native = platform.call("GET", "/api/alarms/queue%20is%20long")
    assert native["status"] == "ALARM" and "150" in native["reason"]
    put_until(50.0, "OK")
    history = cw.describe_alarm_history(AlarmName="queue is long", HistoryItemType="StateUpdate")["AlarmHistoryItems"]
    said = [each["HistorySummary"] for each in history]
    assert said[0] == "Alarm updated from ALARM to OK" and said[-1].startswith("Alarm updated from INSUFFICIENT_DATA")
    assert json.loads(history[0]["HistoryData"])["newState"]["stateValue"] == "OK"
    cw.delete_alarms(AlarmNames=["queue is long"])
    assert platform.ask("GET", "/api/alarms/queue%20is%20long").status == 404


def alarm(cw: Any, **given: Any) -> str:
    """Put an alarm on the endpoint; gives the warnings of the answer."""
    answer = cw.put_metric_alarm(
        Namespace="AWS/SageMaker",
        Dimensions=ON_ENDPOINT,
        **{
            "Period": 300,
            "EvaluationPeriods": 2,
            "ComparisonOperator": "GreaterThanThreshold",
            "Statistic": "Average",
            **given,
        },
    )
    return str(answer["ResponseMetadata"]["HTTPHeaders"].get(WARNING, ""))


def test_the_alarms_of_a_document_are_taken_with_a_warning_that_says_the_right_call(
    cw: Any, platform: Platform
) -> None:
    slow = alarm(cw, AlarmName="high-latency", MetricName="ModelLatency", Threshold=2_000_000, Statistic="p99")
    failing = alarm(cw, AlarmName="high-error-rate", MetricName="Invocation5XXErrors", Threshold=5)
    silent = alarm(cw, AlarmName="no-traffic", MetricName="Invocations", Threshold=0, Period=1800)
    assert "belongs in ExtendedStatistic" in slow and "ExtendedStatistic='p99'" in slow
    assert "can never fire" in failing and "Threshold=0.05" in failing
    assert "inverted" in silent and "TreatMissingData='breaching'" in silent
    assert alarm(cw, AlarmName="right", MetricName="Invocation5XXErrors", Threshold=0.05) == ""
    texts = [row["text"] for row in platform.call("GET", "/api/warnings")["items"]]
    assert any("no-traffic: it is inverted" in text for text in texts)
    shown = {each["AlarmName"]: each for each in cw.describe_alarms()["MetricAlarms"]}
    assert shown["high-latency"]["ExtendedStatistic"] == "p99" and "Statistic" not in shown["high-latency"]
    assert shown["no-traffic"]["MetricName"] == "Invocations" and shown["no-traffic"]["Dimensions"] == ON_ENDPOINT
    assert shown["right"]["AlarmArn"] == f"arn:aws:cloudwatch:us-east-1:{ACCOUNT}:alarm:right"
    said = platform.cli("alarms", "lint")
    assert said.returncode == 1 and "high-error-rate" in said.stdout and "right" not in said.stdout.split()
    watching = cw.describe_alarms_for_metric(
        Namespace="AWS/SageMaker", MetricName="Invocations", Dimensions=ON_ENDPOINT
    )
    assert [each["AlarmName"] for each in watching["MetricAlarms"]] == ["no-traffic"]
    cw.delete_alarms(AlarmNames=["high-latency", "high-error-rate", "no-traffic", "right"])


def test_a_script_is_linted_without_a_server(platform: Platform, tmp_path: Path) -> None:
    script = tmp_path / "alarms.py"
    script.write_text(
        "import boto3\ncw = boto3.client('cloudwatch')\ncw.put_metric_alarm(AlarmName='e', Namespace='AWS/SageMaker',"
        " MetricName='Invocation5XXErrors', Dimensions=[{'Name': 'EndpointName', 'Value': 'x'},"
        " {'Name': 'VariantName', 'Value': 'AllTraffic'}], Statistic='Average', Period=60, EvaluationPeriods=1,"
        " Threshold=5, ComparisonOperator='GreaterThanThreshold')\n"
    )
    said = platform.cli("alarms", "lint", str(script))
    assert (
        said.returncode == 1 and f"{script}:3: e: it can never fire" in said.stdout and "Threshold=0.05" in said.stdout
    )
    script.write_text("from sagemaker.workflow.model_step import RegisterModel\n")
    said = platform.cli("doctor", str(script))
    assert said.returncode == 1 and f"{script}:1:" in said.stdout and "step_collections" in said.stdout
    script.write_text("import boto3\n")
    assert platform.cli("doctor", str(script)).returncode == 0


def natively(platform: Platform, name: str) -> Any:
    """An alarm as loopline's own list has it; None where there is none."""
    found = platform.call("GET", "/api/alarms")["items"]
    return next((row for row in found if row["name"] == name), None)


def test_alarms_page_filter_and_switch(cw: Any, platform: Platform) -> None:
    for n in range(5):
        cw.put_metric_alarm(
            AlarmName=f"page-{n}",
            Namespace="Shop",
            MetricName="Orders",
            Statistic="Sum",
            Period=60,
            EvaluationPeriods=3,
            DatapointsToAlarm=2,
            Threshold=1,
            ComparisonOperator="LessThanOrEqualToThreshold",
            Unit="Count",
            ActionsEnabled=False,
        )
    first = cw.describe_alarms(AlarmNamePrefix="page-", MaxRecords=3)
    rest = cw.describe_alarms(AlarmNamePrefix="page-", MaxRecords=3, NextToken=first["NextToken"])
    assert [len(first["MetricAlarms"]), len(rest["MetricAlarms"])] == [3, 2] and "NextToken" not in rest
    (shown,) = cw.describe_alarms(AlarmNames=["page-0"])["MetricAlarms"]
    assert shown["DatapointsToAlarm"] == 2 and shown["Unit"] == "Count" and shown["ActionsEnabled"] is False
    assert shown["ComparisonOperator"] == "LessThanOrEqualToThreshold" and shown["TreatMissingData"] == "missing"
    assert natively(platform, "page-0")["definition"]["actions_enabled"] is False
    cw.enable_alarm_actions(AlarmNames=["page-0"])
    assert "actions_enabled" not in natively(platform, "page-0")["definition"]
    assert cw.describe_alarms(AlarmNames=["page-0"])["MetricAlarms"][0]["ActionsEnabled"] is True
    cw.disable_alarm_actions(AlarmNames=["page-0"])
    assert natively(platform, "page-0")["definition"]["actions_enabled"] is False
    assert cw.describe_alarms(AlarmNames=["page-0"])["MetricAlarms"][0]["ActionsEnabled"] is False
    cw.set_alarm_state(AlarmName="page-0", StateValue="ALARM", StateReason="a drill")
    (shown,) = cw.describe_alarms(AlarmNamePrefix="page-", StateValue="ALARM")["MetricAlarms"]
    assert shown["AlarmName"] == "page-0" and shown["StateReason"] == "a drill"
    assert code(cw.delete_alarms, AlarmNames=["page-1", "nothing"]) == "ResourceNotFound"
    assert len(cw.describe_alarms(AlarmNamePrefix="page-")["MetricAlarms"]) == 5
    cw.delete_alarms(AlarmNames=[f"page-{n}" for n in range(5)])
    assert natively(platform, "page-0") is None


def test_what_is_no_alarm_is_refused(cw: Any) -> None:
    good = {
        "AlarmName": "bad",
        "Namespace": "Shop",
        "MetricName": "Orders",
        "Statistic": "Sum",
        "Period": 60,
        "EvaluationPeriods": 1,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanThreshold",
    }
    for wrong in (
        {"Statistic": None},
        {"ExtendedStatistic": "p99"},
        {"Period": 45},
        {"DatapointsToAlarm": 2},
        {"TreatMissingData": "shrug"},
        {"ComparisonOperator": "LessThanLowerThreshold"},
        {"EvaluationPeriods": 5000},
    ):
        given = {name: value for name, value in {**good, **wrong}.items() if value is not None}
        assert code(cw.put_metric_alarm, **given) == "InvalidParameterValue", wrong
    assert code(cw.set_alarm_state, AlarmName="none", StateValue="OK", StateReason="") == "ResourceNotFound"
    assert cw.describe_alarms(AlarmNames=["bad"])["MetricAlarms"] == []


# -- what loopline measures of endpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(client: Callable[..., Any], platform: Platform) -> Any:
    """boto3's client of an endpoint that serves."""
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("code/inference.py")
        entry.size = len(SCRIPT.encode())
        tar.addfile(entry, io.BytesIO(SCRIPT.encode()))
    s3, sagemaker = client("s3"), client("sagemaker")
    s3.create_bucket(Bucket="watched-models")
    s3.put_object(Bucket="watched-models", Key="model.tar.gz", Body=buffer.getvalue())
    container = {"Image": IMAGE, "ModelDataUrl": "s3://watched-models/model.tar.gz"}
    role = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
    sagemaker.create_model(ModelName="watched", PrimaryContainer=container, ExecutionRoleArn=role)
    variant = {
        "VariantName": "blue",
        "ModelName": "watched",
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": 1.0,
    }
    sagemaker.create_endpoint_config(EndpointConfigName="watched", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="watched")

    def serves() -> bool:
        found = sagemaker.describe_endpoint(EndpointName=ENDPOINT)
        assert found["EndpointStatus"] != "Failed", found.get("FailureReason")
        return bool(found["EndpointStatus"] == "InService")

    until(serves, "the endpoint serves", 90.0)
    return client("sagemaker-runtime")


def test_invocations_show_as_the_metrics_of_sagemaker(cw: Any, runtime: Any, platform: Platform) -> None:
    begun = time.time()
    for n in range(24):
        body = json.dumps("fail" if n % 4 == 0 else [n]).encode()
        try:
            runtime.invoke_endpoint(EndpointName=ENDPOINT, Body=body, ContentType="application/json")
        except ClientError:
            assert n % 4 == 0

    def read(name: str, statistic: str, variant: str) -> float | None:
        dimensions = [ON_ENDPOINT[0], {"Name": "VariantName", "Value": variant}]
        found = cw.get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName=name,
            Dimensions=dimensions,
            Period=3600,
            Statistics=[statistic],
            **window(),
        )["Datapoints"]
        total = [point[statistic] for point in found]
        return sum(total) if total else None

    until(lambda: read("Invocations", "Sum", "blue") == 24.0, "all are counted", 30.0)
    assert read("Invocations", "Sum", "AllTraffic") == 24.0 and read("Invocations", "Average", "blue") == 1.0
    assert read("Invocation5XXErrors", "Sum", "blue") == 6.0
    assert read("Invocation5XXErrors", "Average", "blue") == pytest.approx(0.25)
    assert read("Invocation4XXErrors", "Sum", "blue") == 0.0
    assert read("InvocationsPerInstance", "Sum", "blue") == 24.0
    latency = read("ModelLatency", "Maximum", "blue")
    assert latency is not None and 0 < latency < (time.time() - begun) * 1e6
    assert read("Invocations", "Sum", "green") is None
    native = platform.call("GET", f"/api/endpoints/{ENDPOINT}/traffic")["total"]
    assert (native["requests"], native["errors_5xx"]) == (24, 6)
    listed = cw.list_metrics(Namespace="AWS/SageMaker", MetricName="ModelLatency")["Metrics"]
    variants = {each["Value"] for metric in listed for each in metric["Dimensions"] if each["Name"] == "VariantName"}
    assert variants == {"blue", "AllTraffic"}


def test_an_alarm_on_failing_requests_fires_and_clears(cw: Any, runtime: Any) -> None:
    assert (
        alarm(
            cw,
            AlarmName="failing",
            MetricName="Invocation5XXErrors",
            Threshold=0.2,
            Period=10,
            EvaluationPeriods=1,
            TreatMissingData="notBreaching",
        )
        == ""
    )

    def asked_until(body: Any, wanted: str) -> None:
        def look() -> bool:
            try:
                runtime.invoke_endpoint(EndpointName=ENDPOINT, Body=json.dumps(body), ContentType="application/json")
            except ClientError:
                assert body == "fail"
            return state(cw, "failing") == wanted

        until(look, f"the alarm is {wanted}", 90.0, pause=0.3)

    asked_until("fail", "ALARM")
    asked_until([1], "OK")
    cw.delete_alarms(AlarmNames=["failing"])


# -- dashboards -------------------------------------------------------------------------------------------------------


def test_a_dashboard_is_kept_and_its_labels_are_read(cw: Any, platform: Platform) -> None:
    metric = ["AWS/SageMaker", "ModelLatency", "EndpointName", ENDPOINT, "VariantName", "AllTraffic"]
    body = json.dumps(
        {
            "widgets": [
                {
                    "type": "metric",
                    "properties": {
                        "title": "推論延遲(P50 / P90 / P99)",
                        "metrics": [
                            [*metric, {"stat": "Average", "label": "P50"}],
                            ["...", {"stat": "p90", "label": "P90"}],
                        ],
                    },
                }
            ]
        },
        ensure_ascii=False,
    )
    (message,) = cw.put_dashboard(DashboardName="MLOps-SentimentEndpoint", DashboardBody=body)[
        "DashboardValidationMessages"
    ]
    assert message["DataPath"] == "/widgets/0/properties/metrics/0" and '"stat": "p50"' in message["Message"]
    found = cw.get_dashboard(DashboardName="MLOps-SentimentEndpoint")
    assert found["DashboardBody"] == body
    assert found["DashboardArn"] == f"arn:aws:cloudwatch::{ACCOUNT}:dashboard/MLOps-SentimentEndpoint"
    assert platform.call("GET", "/api/dashboards/MLOps-SentimentEndpoint")["body"] == body
    (entry,) = cw.list_dashboards(DashboardNamePrefix="MLOps")["DashboardEntries"]
    assert entry["Size"] == len(body.encode()) and entry["DashboardName"] == "MLOps-SentimentEndpoint"
    assert code(cw.put_dashboard, DashboardName="bad", DashboardBody="[]") == "InvalidParameterInput"
    assert code(cw.get_dashboard, DashboardName="none") == "ResourceNotFound"
    assert code(cw.delete_dashboards, DashboardNames=["MLOps-SentimentEndpoint", "none"]) == "ResourceNotFound"
    cw.delete_dashboards(DashboardNames=["MLOps-SentimentEndpoint"])
    assert platform.call("GET", "/api/dashboards")["items"] == []
