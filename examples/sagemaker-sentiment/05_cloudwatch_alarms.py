"""Three alarms of the endpoint, and the topic that they tell.

python 05_cloudwatch_alarms.py
ALARM_EMAIL=ops@example.com python 05_cloudwatch_alarms.py       with a subscriber
python 05_cloudwatch_alarms.py --period 60 --evaluation-periods 1  sooner
"""

import argparse
import os

import boto3

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--period", type=int, default=300, help="seconds; of latency and errors")
parser.add_argument("--evaluation-periods", type=int, default=2, help="of latency and errors")
args = parser.parse_args()

cw = boto3.client("cloudwatch")
sns = boto3.client("sns")
sns_topic_arn = sns.create_topic(Name="mlops-sentiment-alarms")["TopicArn"]
if os.environ.get("ALARM_EMAIL"):
    sns.subscribe(TopicArn=sns_topic_arn, Protocol="email", Endpoint=os.environ["ALARM_EMAIL"])

alarms = [
    {
        "name": "high-latency",
        "metric": "ModelLatency",
        "threshold": 2_000_000,  # 2 秒(單位:微秒)
        "statistic": {"ExtendedStatistic": "p99"},
        "description": "推論 P99 延遲 > 2 秒",
    },
    {
        "name": "high-error-rate",
        "metric": "Invocation5XXErrors",
        "threshold": 0.05,
        "description": "5xx 錯誤率 > 5%",
    },
    {
        "name": "no-traffic",
        "metric": "Invocations",
        "threshold": 1,
        "period": 1800,  # 30 分鐘
        "periods": 1,
        "statistic": {"Statistic": "Sum"},
        "operator": "LessThanThreshold",
        "missing": "breaching",
        "description": "超過 30 分鐘沒有流量",
    },
]

for alarm in alarms:
    cw.put_metric_alarm(
        AlarmName=f"mlops-sentiment-{alarm['name']}",
        AlarmDescription=alarm["description"],
        Namespace="AWS/SageMaker",
        MetricName=alarm["metric"],
        Dimensions=[
            {"Name": "EndpointName", "Value": "mlops-sentiment-endpoint"},
            {"Name": "VariantName", "Value": "AllTraffic"},
        ],
        Period=alarm.get("period", args.period),
        EvaluationPeriods=alarm.get("periods", args.evaluation_periods),
        Threshold=alarm["threshold"],
        ComparisonOperator=alarm.get("operator", "GreaterThanThreshold"),
        **alarm.get("statistic", {"Statistic": "Average"}),
        TreatMissingData=alarm.get("missing", "notBreaching"),
        AlarmActions=[sns_topic_arn],  # 警報時發 Email / Slack
    )

found = cw.describe_alarms(AlarmNamePrefix="mlops-sentiment-")["MetricAlarms"]
for alarm in found:
    print(f"{alarm['AlarmName']}: {alarm['StateValue']}")
