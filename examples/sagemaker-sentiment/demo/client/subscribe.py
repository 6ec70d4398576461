"""Subscribe an HTTP endpoint to the topic that the alarms tell; it is asked first, as by AWS.

python demo/client/subscribe.py http://127.0.0.1:8000/alarms
"""

import sys

import boto3

if len(sys.argv) != 2:
    raise SystemExit("python demo/client/subscribe.py URL")
sns = boto3.client("sns")
topic = sns.create_topic(Name="mlops-sentiment-alarms")["TopicArn"]
url = sys.argv[1]
made = sns.subscribe(TopicArn=topic, Protocol=url.partition(":")[0], Endpoint=url)
print(made["SubscriptionArn"])
