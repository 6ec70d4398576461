"""Define the pipeline (train, evaluate, register), start it, and wait until it has ended.

python 02_pipeline.py                     the reviews of this example
python 02_pipeline.py --reviews FOLDER    others: FOLDER/train.csv and FOLDER/test.csv
python 02_pipeline.py --define-only       only create or update the pipeline
HF_MODEL_DIR=FOLDER python 02_pipeline.py --huggingface
                                          fine-tune the model in FOLDER (config.json, weights, tokenizer)
"""

import argparse
import os
from functools import partial
from pathlib import Path

import sagemaker
from sagemaker.huggingface import HuggingFace, HuggingFaceModel, HuggingFaceProcessor
from sagemaker.inputs import TrainingInput
from sagemaker.model_metrics import MetricsSource, ModelMetrics
from sagemaker.processing import FrameworkProcessor, ProcessingInput, ProcessingOutput
from sagemaker.s3 import S3Uploader
from sagemaker.session_settings import SessionSettings
from sagemaker.sklearn import SKLearn, SKLearnModel
from sagemaker.workflow.functions import Join
from sagemaker.workflow.model_step import ModelStep
from sagemaker.workflow.parameters import ParameterInteger, ParameterString
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import PipelineSession
from sagemaker.workflow.steps import ProcessingStep, TrainingStep
from upload_reviews import upload_reviews

HERE = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--reviews", help="a folder with train.csv and test.csv")
parser.add_argument("--name", help="the last part of the S3 prefix of these reviews")
parser.add_argument("--define-only", action="store_true")
parser.add_argument("--huggingface", action="store_true")
args = parser.parse_args()

session = sagemaker.Session()
pipeline_session = PipelineSession(settings=SessionSettings(encrypt_repacked_artifacts=False))  # the bucket encrypts
role = os.environ.get("SAGEMAKER_ROLE") or sagemaker.get_execution_role(sagemaker_session=session)
reviews = upload_reviews(session, args.reviews, args.name)
instance_type = "ml.g4dn.xlarge" if args.huggingface else "ml.m5.large"  # GPU 加速

# Pipeline 參數(執行時可覆蓋)
model_approval_status = ParameterString(
    name="ModelApprovalStatus",
    default_value="PendingManualApproval",
)
reviews_s3_uri = ParameterString(name="ReviewsS3Uri", default_value=reviews)
num_train_samples = ParameterInteger(name="NumTrainSamples", default_value=2000)

# Training Step
metric_definitions = [
    {"Name": "accuracy", "Regex": "eval_accuracy=([0-9.]+);"},
    {"Name": "f1", "Regex": "eval_f1=([0-9.]+);"},
]
channels = {
    "train": TrainingInput(Join(on="/", values=[reviews_s3_uri, "train"])),
    "test": TrainingInput(Join(on="/", values=[reviews_s3_uri, "test"])),
}
if args.huggingface:
    code, processor_of = HERE / "train_hf", HuggingFaceProcessor
    versions = {"transformers_version": "4.26", "pytorch_version": "1.13", "py_version": "py39"}
    pretrained = f"s3://{session.default_bucket()}/sentiment/pretrained"
    channels["pretrained"] = TrainingInput(
        S3Uploader.upload(os.environ["HF_MODEL_DIR"], pretrained, sagemaker_session=session)
    )
    estimator = HuggingFace(
        entry_point="train.py",
        source_dir=str(code),
        role=role,
        instance_count=1,
        instance_type=instance_type,
        **versions,
        hyperparameters={
            "num_train_samples": num_train_samples,
            "epochs": 2,
            "learning_rate": 2e-5,
        },
        metric_definitions=metric_definitions,
        sagemaker_session=pipeline_session,
    )
else:
    code, processor_of = HERE / "train", partial(FrameworkProcessor, estimator_cls=SKLearn)
    versions = {"framework_version": "1.2-1", "py_version": "py3"}
    estimator = SKLearn(
        entry_point="train.py",
        source_dir=str(code),
        role=role,
        instance_count=1,
        instance_type=instance_type,
        **versions,
        hyperparameters={
            "num_train_samples": num_train_samples,
            "epochs": 40,
            "learning_rate": 1.0,
        },
        metric_definitions=metric_definitions,
        sagemaker_session=pipeline_session,
    )
step_train = TrainingStep(name="TrainModel", step_args=estimator.fit(channels))

# Evaluation Step(評估後才登記)
processor = processor_of(
    **versions,
    role=role,
    instance_count=1,
    instance_type=instance_type,
    base_job_name="evaluate-sentiment",
    sagemaker_session=pipeline_session,
)
step_evaluate = ProcessingStep(
    name="EvaluateModel",
    step_args=processor.run(
        code="evaluate.py",
        source_dir=str(HERE / "evaluate"),
        dependencies=[str(code / "inference.py")],
        inputs=[
            ProcessingInput(
                source=step_train.properties.ModelArtifacts.S3ModelArtifacts,
                destination="/opt/ml/processing/input/model",
            ),
            ProcessingInput(
                source=Join(on="/", values=[reviews_s3_uri, "test"]),
                destination="/opt/ml/processing/input/test",
            ),
        ],
        outputs=[ProcessingOutput(output_name="evaluation", source="/opt/ml/processing/evaluation")],
    ),
)
evaluation = step_evaluate.properties.ProcessingOutputConfig.Outputs["evaluation"].S3Output.S3Uri

# Register Step(把訓練結果登記到 Model Registry)
if args.huggingface:
    model = HuggingFaceModel(
        model_data=step_train.properties.ModelArtifacts.S3ModelArtifacts,
        role=role,
        **versions,
        sagemaker_session=pipeline_session,
    )
else:
    model = SKLearnModel(
        model_data=step_train.properties.ModelArtifacts.S3ModelArtifacts,
        role=role,
        entry_point="inference.py",
        source_dir=str(code),
        **versions,
        sagemaker_session=pipeline_session,
    )
step_register = ModelStep(
    name="RegisterModel",
    step_args=model.register(
        content_types=["application/json"],
        response_types=["application/json"],
        inference_instances=[instance_type],
        model_package_group_name="mlops-sentiment-model-group",
        approval_status=model_approval_status,
        model_metrics=ModelMetrics(
            model_statistics=MetricsSource(
                content_type="application/json",
                s3_uri=Join(on="/", values=[evaluation, "evaluation.json"]),
            )
        ),
        customer_metadata_properties={"reviews": reviews_s3_uri},
    ),
)

# 組合成 Pipeline
pipeline = Pipeline(
    name="mlops-sentiment-pipeline",
    parameters=[model_approval_status, reviews_s3_uri, num_train_samples],
    steps=[step_train, step_evaluate, step_register],
    sagemaker_session=pipeline_session,
)
pipeline.upsert(role_arn=role)
if args.define_only:
    raise SystemExit(0)

execution = pipeline.start(
    parameters={"ModelApprovalStatus": "PendingManualApproval"},
)
execution.wait(delay=2, max_attempts=1800)  # 等待完成
print(execution.describe()["PipelineExecutionStatus"])  # Succeeded
