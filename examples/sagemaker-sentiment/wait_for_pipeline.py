"""Wait in CI until an execution of the pipeline has ended, and say what each step did; exit code 1 when it failed.

python wait_for_pipeline.py [EXECUTION_ARN]         the newest execution unless another is named
"""

import sys
import time

import boto3

sm = boto3.client("sagemaker")
if len(sys.argv) > 1:
    arn = sys.argv[1]
else:
    newest = sm.list_pipeline_executions(
        PipelineName="mlops-sentiment-pipeline", SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )["PipelineExecutionSummaries"]
    if not newest:
        raise SystemExit("mlops-sentiment-pipeline has never been started: python trigger_pipeline.py")
    arn = newest[0]["PipelineExecutionArn"]

while True:
    execution = sm.describe_pipeline_execution(PipelineExecutionArn=arn)
    if execution["PipelineExecutionStatus"] not in ("Executing", "Stopping"):
        break
    time.sleep(2)
steps = sm.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")["PipelineExecutionSteps"]
for step in steps:
    print(f"{step['StepName']}: {step['StepStatus']} {step.get('FailureReason', '')}".rstrip())
print(f"Pipeline {execution['PipelineExecutionStatus']}: {arn}")
sys.exit(0 if execution["PipelineExecutionStatus"] == "Succeeded" else 1)
