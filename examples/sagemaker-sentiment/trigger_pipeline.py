"""Start the pipeline from CI.

python trigger_pipeline.py                          with the reviews of before
python trigger_pipeline.py s3://BUCKET/PREFIX       with others: PREFIX/train and PREFIX/test
"""

import sys

import sagemaker
from sagemaker.workflow.pipeline import Pipeline

parameters = {"ModelApprovalStatus": "PendingManualApproval"}
if len(sys.argv) > 1:
    parameters["ReviewsS3Uri"] = sys.argv[1]
pipeline = Pipeline(name="mlops-sentiment-pipeline", sagemaker_session=sagemaker.Session())
execution = pipeline.start(parameters=parameters)
print(f"Pipeline started: {execution.arn}")
