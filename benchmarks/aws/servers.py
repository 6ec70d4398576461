"""The two servers that are asked the same calls: loopline, and moto's server in an environment of its own."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from loopline.testing.live import Platform, until

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements-moto.txt"
VENV = HERE.parent / ".venvs" / "moto"
UV = str(Path(sys.executable).parent / "uv")
TICKS = os.sysconf("SC_CLK_TCK")
REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/loopline-admin"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bench:1"
BUCKET, GROUP, ENDPOINT = "bench", "bench", "bench"
SCRIPT = """
def model_fn(model_dir):
    return 2.0

def predict_fn(rows, factor):
    return [[factor * float(value) for value in row] for row in rows]
"""


def prepare() -> Path:
    """The interpreter of moto's environment, which is made when its requirements are new."""
    stamp = VENV / ".requirements"
    if not stamp.exists() or stamp.read_bytes() != REQUIREMENTS.read_bytes():
        subprocess.run([UV, "venv", "-q", "--clear", "-p", sys.executable, str(VENV)], check=True)
        install = [UV, "pip", "install", "-q", "--python", str(VENV / "bin" / "python"), "-r", str(REQUIREMENTS)]
        subprocess.run(install, check=True)
        stamp.write_bytes(REQUIREMENTS.read_bytes())
    return VENV / "bin" / "python"


def moto_version() -> str:
    """The pinned one."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("moto=="))


class Server:
    """One of the two, running. ``url`` and ``key``: how clients reach it; ``pid``: the root of its processes."""

    name = ""

    def __init__(self) -> None:
        self.url = ""
        self.key = {"id": "AKIABENCH00000000000", "secret_key": "secret"}

    @property
    def pid(self) -> int:
        """The process that all others descend from."""
        raise NotImplementedError

    def start(self) -> float:
        """Seconds from its start to its first answer to ``GetCallerIdentity``."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it."""
        raise NotImplementedError

    def client(self, service: str) -> Any:
        """boto3's client, which asks once."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.key["id"],
            aws_secret_access_key=self.key["secret_key"],
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def cpu_seconds(self) -> float:
        """Processor time of all of its processes so far."""
        stats: dict[int, list[str]] = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                try:
                    stats[int(path.name)] = (path / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
        known, fresh = {self.pid}, {self.pid}
        while fresh:
            fresh = {pid for pid, fields in stats.items() if int(fields[1]) in fresh and pid not in known}
            known |= fresh
        return sum(int(stats[pid][11]) + int(stats[pid][12]) for pid in known if pid in stats) / TICKS

    def furnish(self) -> None:
        """A bucket, a group, a model and an endpoint that is in service."""
        s3, sagemaker = self.client("s3"), self.client("sagemaker")
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=_archive())
        sagemaker.create_model_package_group(ModelPackageGroupName=GROUP)
        container = {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
        sagemaker.create_model(ModelName="bench", PrimaryContainer=container, ExecutionRoleArn=ROLE)
        variant = {"VariantName": "all", "ModelName": "bench", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        sagemaker.create_endpoint_config(EndpointConfigName="bench", ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="bench")

        def serves() -> bool:
            status = sagemaker.describe_endpoint(EndpointName=ENDPOINT)["EndpointStatus"]
            if status not in ("Creating", "InService"):
                raise RuntimeError(f"{self.name}: the endpoint is {status}")
            return bool(status == "InService")

        until(serves, "the endpoint is in service", 120)


class Loopline(Server):
    """``loopline up`` on an empty directory."""

    name = "loopline"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.platform = Platform(folder)

    @property
    def pid(self) -> int:
        return self.platform.pid

    def start(self) -> float:
        began = time.perf_counter()
        self.platform.start()
        self.url = self.platform.url
        self.key = json.loads((self.platform.folder / "client.json").read_text())["access_key"]
        self.client("sts").get_caller_identity()
        return time.perf_counter() - began

    def furnish(self) -> None:
        self.platform.call("PUT", "/api/images/bench", {"requirements": ""})
        super().furnish()

    def stop(self) -> None:
        self.platform.stop()


class Moto(Server):
    """``moto_server`` as its documentation starts it."""

    name = "moto"

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._python, self._log = prepare(), log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        client = self.client("sts")
        program = str(self._python.with_name("moto_server"))
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)

        def answers() -> bool:
            try:
                return bool(client.get_caller_identity()["Account"])
            except (EndpointConnectionError, ClientError):
                return False

        until(answers, "moto answers", 60)
        return time.perf_counter() - began

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)


def _archive() -> bytes:
    """The model: a script and nothing else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo("code/inference.py")
        entry.size = len(SCRIPT)
        tar.addfile(entry, io.BytesIO(SCRIPT.encode()))
    return buffer.getvalue()
