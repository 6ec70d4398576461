"""The endpoint's dashboard: latency, calls a minute, share of errors.

python 06_dashboard.py
"""

import json

import boto3

cw = boto3.client("cloudwatch")
region = cw.meta.region_name
endpoint = ["EndpointName", "mlops-sentiment-endpoint", "VariantName", "AllTraffic"]

dashboard_body = {
    "widgets": [
        {
            "type": "metric",
            "properties": {
                "title": "推論延遲(P50 / P90 / P99)",
                "region": region,
                "metrics": [
                    ["AWS/SageMaker", "ModelLatency", *endpoint, {"stat": "p50", "label": "P50"}],
                    ["...", {"stat": "p90", "label": "P90"}],
                    ["...", {"stat": "p99", "label": "P99"}],
                ],
            },
        },
        {
            "type": "metric",
            "properties": {
                "title": "每分鐘呼叫次數",
                "region": region,
                "stat": "Sum",
                "period": 60,
                "metrics": [["AWS/SageMaker", "Invocations", *endpoint]],
            },
        },
        {
            "type": "metric",
            "properties": {
                "title": "錯誤率",
                "region": region,
                "stat": "Average",
                "period": 60,
                "metrics": [["AWS/SageMaker", "Invocation5XXErrors", *endpoint]],
            },
        },
    ]
}
cw.put_dashboard(
    DashboardName="MLOps-SentimentEndpoint",
    DashboardBody=json.dumps(dashboard_body),
)

kept = json.loads(cw.get_dashboard(DashboardName="MLOps-SentimentEndpoint")["DashboardBody"])
for widget in kept["widgets"]:
    print(widget["properties"]["title"])
