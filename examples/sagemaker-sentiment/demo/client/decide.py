"""Decide on versions as an ML engineer does, and list them.

python demo/client/decide.py                              only list them
python demo/client/decide.py 2=Rejected 3=Approved --why "good enough on both languages"
"""

import argparse

import boto3

GROUP = "mlops-sentiment-model-group"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("decisions", nargs="*", metavar="VERSION=STATUS")
parser.add_argument("--why", default="decided by hand")
args = parser.parse_args()

sm = boto3.client("sagemaker")
packages = sm.list_model_packages(ModelPackageGroupName=GROUP, SortBy="CreationTime", SortOrder="Descending")
arns = {str(v["ModelPackageVersion"]): v["ModelPackageArn"] for v in packages["ModelPackageSummaryList"]}
for decision in args.decisions:
    number, _, status = decision.partition("=")
    if number not in arns:
        raise SystemExit(f"{GROUP} has no version {number}; it has {', '.join(arns) or 'none'}")
    sm.update_model_package(
        ModelPackageArn=arns[number],
        ModelApprovalStatus=status,
        ApprovalDescription=args.why,
    )

versions = sm.list_model_packages(
    ModelPackageGroupName=GROUP,
    SortBy="CreationTime",
    SortOrder="Descending",
)
for v in versions["ModelPackageSummaryList"]:
    print(f"版本 {v['ModelPackageVersion']}: [{v['ModelApprovalStatus']}]")
