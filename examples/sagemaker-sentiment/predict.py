"""Ask the endpoint about sentences of your own.

python predict.py "The plot is thin, but I could not stop smiling."
"""

import json
import sys

import boto3

if len(sys.argv) < 2:
    raise SystemExit('python predict.py "a sentence" ["another" ...]')
runtime = boto3.client("sagemaker-runtime")
response = runtime.invoke_endpoint(
    EndpointName="mlops-sentiment-endpoint",
    ContentType="application/json",
    Body=json.dumps({"inputs": sys.argv[1:]}),
)
for sentence, found in zip(sys.argv[1:], json.loads(response["Body"].read()), strict=True):
    print(f"{found['label']} {found['score']:.2f}  {sentence}")
