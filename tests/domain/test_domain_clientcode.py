"""The finder of client-side mistakes: each line of the ledger is found where it stands, with a line that works, and
what is right is left alone."""

import ast

import pytest

from loopline.domain import clientcode
from loopline.domain.clientcode import find
from loopline.errors import InvalidInput

# What a document prints -> code, and what the fix has to say.
LEDGER = [
    (
        "from sagemaker.workflow.pipeline import Pipeline\n"
        "pipeline = Pipeline.describe(name='p', sagemaker_session=session)",
        "pipeline-describe",
        "Pipeline(name='p', sagemaker_session=session)",
    ),
    (
        "from sagemaker.sklearn import SKLearn\n"
        "estimator = SKLearn(entry_point='train.py', role=role, train_instance_type='ml.m5.large')",
        "estimator",
        "SKLearn(entry_point='train.py', role=role, instance_type='ml.m5.large', framework_version=\"1.2-1\")",
    ),
    (
        "from sagemaker.processing import ProcessingOutput\n"
        "ProcessingOutput(source='/opt/ml/x', destination='s3://b/x', s3_data_type='S3Prefix')",
        "processing-output",
        "ProcessingOutput(source='/opt/ml/x', destination='s3://b/x')",
    ),
    (
        "from sagemaker.processing import Processor\n"
        "processor = Processor(role=role, image_uri='x', instance_count=1, instance_type='ml.m5.xlarge')\n"
        "processor.run(inputs=[], code='extract.py')",
        "processor-code",
        "ScriptProcessor",
    ),
    (
        "from sagemaker.experiments import Run\n"
        "with Run(experiment_name='e', run_name='r') as run:\n"
        "    run.log_metrics({'mAP': m, 'loss': l}, step=epoch)",
        "run-log-metrics",
        "for name, value in {'mAP': m, 'loss': l}.items(): run.log_metric(name, value, step=epoch)",
    ),
    (
        "from sagemaker.experiments import Run\n"
        "with Run(experiment_name='e', run_name='r') as run:\n"
        "    run.log_file(name='model', s3_uri='s3://b/model.tar.gz')",
        "run-log-file",
        "run.log_artifact(name='model', value='s3://b/model.tar.gz')",
    ),
    (
        "from sagemaker.experiments import Run\n"
        "with Run(experiment_name='e', run_name='r') as run:\n"
        "    run.log_file(name='script', local_path='train.py')",
        "run-log-file",
        "run.log_file('train.py', name='script')",
    ),
    (
        "from sagemaker.workflow.model_step import RegisterModel",
        "import",
        "from sagemaker.workflow.step_collections import RegisterModel",
    ),
    (
        "predictor = estimator.deploy(initial_instance_count=1, instance_type='x')\n"
        "predictor.update_endpoint(data_capture_config=data_capture_config)",
        "data-capture",
        "predictor.update_data_capture_config(data_capture_config)",
    ),
    (
        "from sagemaker.model_monitor import ModelMonitor\n"
        "monitor = ModelMonitor(role=role)\n"
        "monitor.create_monitoring_schedule(endpoint_input=e, record_preprocessor_script='a.py',\n"
        "    post_processor_script='b.py', output_s3_uri='s3://b/x', schedule_cron_expression='cron(0 * ? * * *)')",
        "monitoring-schedule",
        "post_analytics_processor_script='b.py'",
    ),
    (
        "model_data = step.properties.ModelArtifacts.S3ModelDataUrl",
        "model-artifacts",
        "step.properties.ModelArtifacts.S3ModelArtifacts",
    ),
    (
        "pipeline.upsert(role_arn='SageMakerRole')",
        "role-arn",
        'pipeline.upsert(role_arn="arn:aws:iam::123456789012:role/SageMakerRole")',
    ),
    ("from azureml.core import Workspace", "azure-v1", "from azure.ai.ml import MLClient"),
    (
        "def init():\n    pass\ndef run(raw):\n    return json.dumps({'error': 'bad'}), 400",
        "score-status",
        "return AMLResponse(json.dumps({'error': 'bad'}), 400)",
    ),
    (
        "from airflow.operators.python import PythonOperator\n"
        "def drifted():\n    if psi > 0.1:\n        return True\n    return False\n"
        "check = PythonOperator(task_id='check', python_callable=drifted)",
        "airflow-skip",
        "ShortCircuitOperator(task_id='check', python_callable=drifted)",
    ),
    (
        "from fastapi import HTTPException\n"
        "def predict(x):\n    try:\n        return model.predict(x)\n"
        "    except Exception as e:\n        raise HTTPException(status_code=400, detail=str(e))",
        "error-status",
        "raise HTTPException(status_code=500, detail=str(e))",
    ),
    (
        "body = {'metrics': [['AWS/SageMaker', 'ModelLatency', ..., {'stat': 'Average', 'label': 'P50'}]]}",
        "dashboard-label",
        "'stat': 'p50'",
    ),
]


@pytest.mark.parametrize(("source", "code", "fix"), LEDGER, ids=lambda value: None if "\n" in value else value[:40])
def test_each_line_of_the_ledger_is_found_with_the_line_to_write(source: str, code: str, fix: str) -> None:
    (mistake,) = find(source)
    assert mistake.code == code and fix in mistake.fix
    lines = source.splitlines()
    assert 1 <= mistake.line <= len(lines) and "\n" not in mistake.fix
    if code not in ("processor-code",):
        ast.parse(mistake.fix if code != "monitoring-schedule" else mistake.fix.partition("  #")[0]) if not (
            mistake.fix.startswith("return")
        ) else None


RIGHT = """
import boto3
from sagemaker.experiments import Run
from sagemaker.model_monitor import DefaultModelMonitor
from sagemaker.processing import ProcessingInput, ScriptProcessor
from sagemaker.sklearn import SKLearn
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.step_collections import RegisterModel

pipeline = Pipeline(name="p", steps=[])
pipeline.describe()
pipeline.upsert(role_arn=role)
pipeline.upsert(role_arn="arn:aws:iam::123456789012:role/SageMakerRole")
estimator = SKLearn(entry_point="t.py", framework_version="1.2-1", instance_type="ml.m5.large", role=role)
estimator = SKLearn(entry_point="t.py", instance_type="ml.m5.large", role=role, **versions)
ProcessingInput(source="s3://b/x", destination="/opt/ml/x", s3_data_type="S3Prefix")
processor = ScriptProcessor(command=["python3"], image_uri="x", role=role)
processor.run(code="extract.py")
with Run(experiment_name="e") as run:
    run.log_metric("loss", 0.1, step=1)
    run.log_file("train.py", name="script")
logger.log_metrics({"loss": 0.1})
monitor = DefaultModelMonitor(role=role)
monitor.create_monitoring_schedule(endpoint_input=e, post_analytics_processor_script="b.py", output_s3_uri="s3://b/x")
predictor = estimator.deploy(initial_instance_count=1)
predictor.update_endpoint(initial_instance_count=2)
try:
    predict()
except ValueError as error:
    raise HTTPException(status_code=400, detail=str(error))
series = [{"stat": "p50", "label": "P50"}, {"stat": "Sum", "label": "requests"}]
boto3.client("cloudwatch").put_metric_alarm(
    AlarmName="errors", Namespace="AWS/SageMaker", MetricName="Invocation5XXErrors", Statistic="Average",
    Dimensions=[{"Name": "EndpointName", "Value": "e"}, {"Name": "VariantName", "Value": "AllTraffic"}],
    Period=300, EvaluationPeriods=2, Threshold=0.05, ComparisonOperator="GreaterThanThreshold",
)
"""


def test_what_is_right_is_left_alone() -> None:
    assert find(RIGHT) == []


BITBUCKET = """image: python:3.10
pipelines:
  branches:
    main:
      - step:
          script:
            - pip install sagemaker boto3
            - python -c "
import sagemaker, boto3
from sagemaker.workflow.pipeline import Pipeline
pipeline = Pipeline.describe(
    name='mlops-sentiment-pipeline',
    sagemaker_session=sagemaker.Session()
)
execution = pipeline.start()
"
"""


def test_python_within_a_ci_definition_is_read_where_it_stands() -> None:
    assert [(each.line, each.code) for each in find(BITBUCKET)] == [(7, "sdk-version"), (11, "pipeline-describe")]
    assert find(BITBUCKET)[0].fix == "- pip install 'sagemaker<3' boto3"
    for pinned in ("sagemaker==2.257.1", "'sagemaker<3'", "sagemaker-training", "sagemaker[local]<3"):
        assert find(f"pip install {pinned}\npython -c 'import boto3'") == []


ALARMS = """
import boto3
cw = boto3.client("cloudwatch")
alarms = [
    {"name": "high-latency", "metric": "ModelLatency", "threshold": 2_000_000, "statistic": "p99"},
    {"name": "high-error-rate", "metric": "Invocation5XXErrors", "threshold": 5},
    {"name": "no-traffic", "metric": "Invocations", "threshold": 0, "period": 1800},
]
for alarm in alarms:
    cw.put_metric_alarm(
        AlarmName=f"mlops-sentiment-{alarm['name']}",
        Namespace="AWS/SageMaker",
        MetricName=alarm["metric"],
        Dimensions=[
            {"Name": "EndpointName", "Value": "mlops-sentiment-endpoint"},
            {"Name": "VariantName", "Value": "AllTraffic"},
        ],
        Period=alarm.get("period", 300),
        EvaluationPeriods=2,
        Threshold=alarm["threshold"],
        ComparisonOperator="GreaterThanThreshold",
        Statistic=alarm.get("statistic", "Average"),
        AlarmActions=[sns_topic_arn],
    )
"""


def test_alarms_made_in_a_loop_are_judged_one_by_one() -> None:
    found = clientcode.alarms(ALARMS)
    assert [(each.line, each.name, [one.code for one in each.verdict.findings]) for each in found] == [
        (10, "mlops-sentiment-high-latency", ["misplaced"]),
        (10, "mlops-sentiment-high-error-rate", ["never"]),
        (10, "mlops-sentiment-no-traffic", ["inverted"]),
    ]
    fixes = {each.message.partition(":")[0]: each.fix for each in find(ALARMS)}
    assert fixes["mlops-sentiment-high-latency"] == "ExtendedStatistic='p99'; without Statistic"
    assert fixes["mlops-sentiment-high-error-rate"] == "Threshold=0.05"
    assert "TreatMissingData='breaching'" in fixes["mlops-sentiment-no-traffic"]


@pytest.mark.parametrize(
    "source",
    [
        "cw.put_metric_alarm(AlarmName='a', **given)",
        "cw.put_metric_alarm(AlarmName='a', Threshold=limit, MetricName='Invocations')",
        "for name in names():\n    cw.put_metric_alarm(AlarmName=name, Threshold=float(1))",
        "cw.put_metric_alarm(Threshold='five', Namespace=3, MetricName=[], Period={}, EvaluationPeriods=1,"
        " ComparisonOperator='GreaterThanThreshold', Statistic='Sum')",
        "x = " + "[" * 50 + "]" * 50,
        "while True:\n    for a in [1]:\n        for b in [2]:\n            cw.put_metric_alarm(**{'x': a[b]})",
    ],
)
def test_what_cannot_be_told_from_the_text_raises_nothing(source: str) -> None:
    find(source)


def test_a_script_is_never_run(tmp_path: object) -> None:
    find(f"import os\nopen({str(tmp_path) + '/made'!r}, 'w').write('x')\nos.system('touch {tmp_path}/made')")
    from pathlib import Path

    assert not (Path(str(tmp_path)) / "made").exists()


def test_what_is_no_python_says_where() -> None:
    with pytest.raises(InvalidInput, match="line 2"):
        find("x = 1\ny = = 2\n")


def test_scripts_of_version_3_are_not_read_as_those_of_version_2() -> None:
    script = """
# pip install sagemaker
from sagemaker.core import image_uris
from sagemaker.core.processing import ScriptProcessor
from sagemaker.core.shapes import ProcessingOutput, ProcessingS3Output
from sagemaker.mlops.workflow.pipeline import Pipeline
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, SourceCode

trainer = ModelTrainer(training_image=image, source_code=SourceCode(source_dir="source", entry_script="train.py"))
trainer.train()
ScriptProcessor(image_uri=image, role=role, instance_count=1, instance_type="ml.m5.large").run(code="prepare.py")
pipeline = Pipeline(name="p", steps=[])
pipeline.upsert(role_arn="SageMakerRole")
pipeline.describe()
"""

    assert find(script) == []
    older = script.replace("core", "x").replace("mlops", "x").replace("train", "x")
    assert {each.code for each in find(older)} == {"role-arn", "sdk-version"}


def test_what_fails_in_version_3_itself() -> None:
    script = """
from sagemaker import image_uris
from sagemaker.core.resources import Endpoint, ModelPackage
from sagemaker.serve import ModelBuilder
from sagemaker.workflow.pipeline import Pipeline
try:
    from sagemaker.mlops.workflow import Pipeline as Newer
except ImportError:
    from sagemaker.workflow.pipeline import Pipeline as Newer

ModelPackage.create(model_package_group_name="boxes", inference_specification=spec)
ModelPackage.get(model_package_name=arn)
builder = ModelBuilder(image_uri=image, s3_model_data_url=uri)
builder.deploy(endpoint_name="boxes", update_endpoint=True)
builder.deploy(endpoint_name="boxes", update_endpoint=False)
"""

    found = find(script)

    assert [(each.line, each.code) for each in found] == [
        (2, "sdk-mixed"),
        (5, "sdk-mixed"),
        (11, "package-create"),
        (14, "update-endpoint"),
    ]
    assert found[0].fix == "from sagemaker.core import image_uris"
    assert found[2].fix == "ModelBuilder(image_uri=..., ...).register(model_package_group_name='boxes')"
