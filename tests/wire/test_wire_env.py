"""`eval "$(loopline env)"`: what a shell, Python and the SDKs make of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loopline.testing.live import Platform

# What the SageMaker SDK does: the address of STS stands in the call.
SDK = """
import boto3
sts = boto3.client("sts", region_name="us-east-1", endpoint_url="https://sts.us-east-1.amazonaws.com")
print(sts.get_caller_identity()["Arn"])
"""
WHERE = """
import boto3
print(boto3.client("sts", region_name="us-east-1", endpoint_url="https://sts.us-east-1.amazonaws.com").meta.endpoint_url)
print(boto3.client("sts", region_name="us-east-1", endpoint_url="http://other.example:1").meta.endpoint_url)
"""


def shell(platform: Platform, script: str, **environ: str) -> str:
    """What a shell prints that has been through the eval; ``loopline`` and ``python`` are this interpreter's."""
    loopline = f"{sys.executable} -c 'from loopline.cli import main; main()'"
    text = f'loopline() {{ {loopline} "$@"; }}; eval "$(loopline env)" || exit 1\n{script}'
    kept = {"PATH": os.environ["PATH"], **platform.environ(), **environ}
    done = subprocess.run(["bash", "-c", text], env=kept, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program.py"


def test_what_the_sdk_sends_to_aws_comes_here(platform: Platform, program: Path) -> None:
    program.write_text(SDK)

    said = shell(platform, f"{sys.executable} {program}")

    assert said == "arn:aws:sts::123456789012:assumed-role/loopline-admin/admin\n"


def test_other_addresses_are_left_and_without_the_variable_all_are(platform: Platform, program: Path) -> None:
    program.write_text(WHERE)

    here, elsewhere = shell(platform, f"{sys.executable} {program}").split()
    assert (here, elsewhere) == (platform.url, "http://other.example:1")

    there, elsewhere = shell(platform, f"unset AWS_ENDPOINT_URL; {sys.executable} {program}").split()
    assert (there, elsewhere) == ("https://sts.us-east-1.amazonaws.com", "http://other.example:1")


def test_another_sitecustomize_has_its_turn(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")

    said = shell(
        platform, f"{sys.executable} -c 'print(1)'", PYTHONPATH=f"{platform.environ()['PYTHONPATH']}:{tmp_path}"
    )

    assert said.split() == ["theirs", "1"] or said.split()[-2:] == ["theirs", "1"]


def test_the_pair_is_the_same_each_time_and_another_once_it_is_revoked(platform: Platform) -> None:
    first, again = (json.loads(platform.cli("env", "--json").stdout) for _ in range(2))
    assert first == again
    assert first["AWS_ENDPOINT_URL"] == platform.url
    assert Path(first["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"]).read_text().count("TelemetryOptOut: true") == 1
    key = first["AWS_ACCESS_KEY_ID"]

    assert platform.cli("access-keys", "revoke", key).returncode == 0
    other = json.loads(platform.cli("env", "--json").stdout)

    assert other["AWS_ACCESS_KEY_ID"] != key
    assert json.loads(platform.cli("env", "--json").stdout) == other
    assert (platform.folder / "client.json").stat().st_mode & 0o777 == 0o600


def test_names_of_roles(platform: Platform) -> None:
    assert platform.cli("roles", "create", "Trainer", "--as", "editor").stdout == "Trainer stands for the role editor\n"
    listed = platform.cli("roles", "list").stdout.splitlines()
    assert [line.split("\t")[:2] for line in listed if line.startswith("Trainer")] == [["Trainer", "editor"]]
    assert platform.cli("roles", "delete", "Trainer").returncode == 0
    assert platform.cli("roles", "delete", "loopline-admin").returncode == 1
