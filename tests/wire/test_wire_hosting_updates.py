"""UpdateEndpoint's policies by boto3: what callers get while traffic moves, and how alarms and registries stop it."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until

WARNING = "x-loopline-warning"


@pytest.fixture(scope="module")
def hosting(hosting: Any) -> Any:
    """Models and configurations x2 and x3, and the same with two instances each."""
    hosting.configure(2, 3)
    for slope in (2, 3):
        hosting.configured(f"pair{slope}", f"x{slope}", instances=2)
    return hosting


def alarm(client: Callable[..., Any], name: str) -> Callable[[], None]:
    """An alarm on a metric that nobody sends; gives what makes it fire."""
    cloudwatch = client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="Shop",
        MetricName=f"Complaints of {name}",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1.0,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        TreatMissingData="notBreaching",
    )
    return lambda: cloudwatch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="customers complain")


def blue_green(kind: str, wait: int, **more: Any) -> dict[str, Any]:
    routing = {key: more.pop(key) for key in ("CanarySize", "LinearStepSize") if key in more}
    return {"TrafficRoutingConfiguration": {"Type": kind, "WaitIntervalInSeconds": wait, **routing}, **more}


def rollout(platform: Platform, endpoint: str) -> dict[str, Any]:
    """The newest one, as loopline shows it."""
    found: dict[str, Any] = platform.call("GET", f"/api/rollouts?endpoint={endpoint}")["items"][0]
    return found


def seen(hosting: Any, endpoint: str, count: int = 20) -> set[float]:
    """The slopes that answer."""
    return {hosting.slope(endpoint) for _ in range(count)}


def test_a_linear_update_moves_in_equal_steps_and_both_answer_on_the_way(hosting: Any, platform: Platform) -> None:
    hosting.start("linear", "x2")
    size = {"Type": "CAPACITY_PERCENT", "Value": 34}
    policy = blue_green("LINEAR", 2, LinearStepSize=size, TerminationWaitInSeconds=1)
    hosting.update("linear", "x3", BlueGreenUpdatePolicy=policy)
    slopes: set[float] = set()

    def both_answered() -> bool:
        slopes.add(hosting.slope("linear"))
        return slopes == {2.0, 3.0}

    until(both_answered, "old and new answer side by side", 60.0)
    assert hosting.in_service("linear")["EndpointConfigName"] == "x3"
    assert seen(hosting, "linear") == {3.0}
    steps = rollout(platform, "linear")["decisions"]
    assert [each["share"] for each in steps] == [34.0, 68.0, 100.0]
    assert all(each["figures"]["elapsed_seconds"] >= 2.0 for each in steps)
    told = hosting.sagemaker.describe_endpoint(EndpointName="linear")["LastDeploymentConfig"]
    assert told == {"BlueGreenUpdatePolicy": policy}


def test_an_alarm_takes_a_linear_update_back(hosting: Any, client: Callable[..., Any], platform: Platform) -> None:
    hosting.start("wary", "x2")
    fire = alarm(client, "wary")
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    policy = blue_green("LINEAR", 600, LinearStepSize=size, MaximumExecutionTimeoutInSeconds=3600)
    alarms = {"Alarms": [{"AlarmName": "wary"}]}
    hosting.update("wary", "x3", BlueGreenUpdatePolicy=policy, AutoRollbackConfiguration=alarms)
    until(lambda: hosting.slope("wary") == 3.0, "the new one answers", 60.0)
    assert hosting.status("wary") == "Updating"
    assert rollout(platform, "wary")["plan"]["max_seconds"] == 3600.0
    fire()
    shown = hosting.in_service("wary")
    assert shown["EndpointConfigName"] == "x2" and "the alarm wary fired" in shown["FailureReason"]
    assert seen(hosting, "wary") == {2.0}
    done = rollout(platform, "wary")
    assert (done["status"], done["strategy"]) == ("RolledBack", "linear")


def servers(platform: Platform, endpoint: str) -> dict[str, int]:
    """How many servers take requests of each servable, as loopline shows it."""
    shown = platform.call("GET", f"/api/endpoints/{endpoint}")["variants"]
    ready = {each["name"]: sum(server["state"] == "ready" for server in each["servers"]) for each in shown}
    return {name: count for name, count in ready.items() if count}


def test_a_rolling_update_replaces_servers_batch_by_batch_and_goes_back_whole(
    hosting: Any, client: Callable[..., Any], platform: Platform
) -> None:
    hosting.start("rolling", "pair2")
    fire = alarm(client, "rolling")
    one = {"Type": "INSTANCE_COUNT", "Value": 1}
    slow = {"MaximumBatchSize": one, "RollbackMaximumBatchSize": one, "WaitIntervalInSeconds": 600}
    answer = hosting.sagemaker.update_endpoint(
        EndpointName="rolling",
        EndpointConfigName="pair3",
        DeploymentConfig={
            "RollingUpdatePolicy": slow,
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "rolling"}]},
        },
    )
    assert "RollbackMaximumBatchSize has no effect" in answer["ResponseMetadata"]["HTTPHeaders"][WARNING]
    until(lambda: seen(hosting, "rolling") == {2.0, 3.0}, "one of each answers", 60.0)
    until(lambda: servers(platform, "rolling") == {"AllTraffic": 1, "AllTraffic-2": 1}, "one of each is left", 30.0)
    fire()
    assert hosting.in_service("rolling")["EndpointConfigName"] == "pair2"
    assert seen(hosting, "rolling") == {2.0}
    until(lambda: servers(platform, "rolling") == {"AllTraffic": 2}, "the old ones are two again", 60.0)
    hosting.update("rolling", "pair3", RollingUpdatePolicy={"MaximumBatchSize": one, "WaitIntervalInSeconds": 0})
    assert hosting.in_service("rolling")["EndpointConfigName"] == "pair3"
    assert seen(hosting, "rolling") == {3.0}
    done = rollout(platform, "rolling")
    assert (done["strategy"], [each["share"] for each in done["decisions"]]) == ("rolling", [50.0, 100.0])


def test_until_the_old_servers_may_end_an_alarm_takes_everything_back(
    hosting: Any, client: Callable[..., Any], platform: Platform
) -> None:
    hosting.start("patient", "x2")
    fire = alarm(client, "patient")
    policy = blue_green("ALL_AT_ONCE", 0, TerminationWaitInSeconds=600, MaximumExecutionTimeoutInSeconds=1200)
    alarms = {"Alarms": [{"AlarmName": "patient"}]}
    hosting.update("patient", "x3", BlueGreenUpdatePolicy=policy, AutoRollbackConfiguration=alarms)
    until(lambda: seen(hosting, "patient", 5) == {3.0}, "all traffic has moved", 60.0)
    until(lambda: rollout(platform, "patient")["status"] == "Baking", "it is watched", 30.0)
    shown = hosting.sagemaker.describe_endpoint(EndpointName="patient")
    assert (shown["EndpointStatus"], shown["EndpointConfigName"]) == ("Updating", "x2")
    (coming,) = shown["PendingDeploymentSummary"]["ProductionVariants"]
    assert coming["VariantStatus"][0]["Status"] == "Baking"
    fire()
    shown = hosting.in_service("patient")
    assert shown["EndpointConfigName"] == "x2" and "patient" in shown["FailureReason"]
    assert seen(hosting, "patient") == {2.0}


# -- models by the registry -------------------------------------------------------------------------------------------


def package(hosting: Any, group: str, slope: float, status: str) -> str:
    """A model package of a file; gives its ARN."""
    data = hosting.put(f"{group}/{slope}.tar.gz", slope)
    made = hosting.sagemaker.create_model_package(
        ModelPackageGroupName=group,
        InferenceSpecification={
            "Containers": [{"Image": hosting.image, "ModelDataUrl": data}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        ModelApprovalStatus=status,
    )
    return str(made["ModelPackageArn"])


def of_package(hosting: Any, name: str, arn: str) -> None:
    """A model by the package's ARN alone, and a configuration of it."""
    hosting.sagemaker.create_model(
        ModelName=name, ExecutionRoleArn=hosting.role, PrimaryContainer={"ModelPackageName": arn}
    )
    hosting.configured(name, name)


def test_a_model_made_of_a_package_serves_under_its_groups_gate(hosting: Any, platform: Platform) -> None:
    hosting.sagemaker.create_model_package_group(ModelPackageGroupName="lines")
    arn = package(hosting, "lines", 7.0, "Approved")
    of_package(hosting, "lines-1", arn)
    hosting.start("of-package", "lines-1")
    assert seen(hosting, "of-package", 3) == {7.0}
    assert hosting.sagemaker.describe_model(ModelName="lines-1")["PrimaryContainer"] == {"ModelPackageName": arn}
    native = platform.call("GET", "/api/servables/lines-1")
    assert (native["gated"], native["model"], native["number"]) == (True, "lines", 1)
    (live,) = platform.call("GET", "/api/live?endpoint=of-package")["items"]
    assert (live["model"], live["version"]) == ("lines", 1)
    history = platform.call("GET", "/api/models/lines/versions/1")["history"]
    (warned,) = [event["reason"] for event in history if event["kind"] == "warned"]
    assert "loopline versions evaluate lines 1" in warned

    waiting = package(hosting, "lines", 8.0, "PendingManualApproval")
    of_package(hosting, "lines-2", waiting)
    platform.call("PUT", "/api/models/lines/gate-mode", {"mode": "enforce", "reason": "from now on it counts"})
    strict = package(hosting, "lines", 9.0, "Approved")
    of_package(hosting, "lines-3", strict)
    for config, told in (("lines-2", "PendingManualApproval"), ("lines-3", "loopline versions evaluate lines 3")):
        with pytest.raises(ClientError) as refused:
            hosting.sagemaker.create_endpoint(EndpointName="never", EndpointConfigName=config)
        error = refused.value.response["Error"]
        assert error["Code"] == "ValidationException" and told in error["Message"]
        with pytest.raises(ClientError, match=told):
            hosting.update("of-package", config)
    assert platform.ask("GET", "/api/endpoints/never").status == 404
    assert seen(hosting, "of-package", 3) == {7.0}


# -- what a request says ----------------------------------------------------------------------------------------------


def test_attributes_go_in_and_come_out_and_a_models_own_status_is_told(hosting: Any) -> None:
    hosting.start("talking", "x2")
    assert hosting.ask("talking", [1.0], CustomAttributes="trace=7; b")["CustomAttributes"] == "heard trace=7; b"
    assert "CustomAttributes" not in hosting.ask("talking", [1.0])
    with pytest.raises(ClientError) as refused:
        hosting.ask("talking", "status", CustomAttributes="kept")
    answer = refused.value.response
    assert (answer["Error"]["Code"], answer["OriginalStatusCode"]) == ("ModelError", 422)
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-invoked-production-variant"] == "AllTraffic"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "heard kept"
    with pytest.raises(ClientError) as refused:
        hosting.ask("talking", [1.0], TargetModel="any.tar.gz")
    error = refused.value.response["Error"]
    assert error["Code"] == "ValidationError" and "is not a multi-model endpoint" in error["Message"]
