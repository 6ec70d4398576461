"""What a container's contract tells a program: variables, arguments and the configuration of its resources.

Sources: ENVIRONMENT_VARIABLES.md of aws/sagemaker-training-toolkit; docs.aws.amazon.com, "How Amazon SageMaker Provides
Training Information". ``call``: of ``runtime.scripts``; ``number``: which host is meant, from 0.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH110, PTH122

import json
import os
from typing import Any

GROUP = "homogeneousCluster"


def names(call: dict[str, Any]) -> list[str]:
    """The hosts."""
    return [f"algo-{number + 1}" for number in range(call["hosts"])]


def resources(call: dict[str, Any], number: int) -> dict[str, Any]:
    """The content of ``resourceconfig.json``."""
    group = {"instance_group_name": GROUP, "instance_type": call["machine"], "hosts": names(call)}
    return {
        "current_host": names(call)[number],
        "current_instance_type": call["machine"],
        "current_group_name": GROUP,
        "hosts": names(call),
        "instance_groups": [group],
        "network_interface_name": "lo",
    }


def _own(call: dict[str, Any]) -> dict[str, Any]:
    """The author's hyperparameters: what is written as JSON is read as such."""
    found = {}
    for name, text in call["hyperparameters"].items():
        if not name.startswith(("sagemaker_", "_tuning_")):
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
    return found


def arguments(call: dict[str, Any]) -> list[str]:
    """Hyperparameters as the program's arguments: ``--name value``, by name; a letter alone gets one dash."""
    words = []
    for name, value in sorted(_own(call).items()):
        if isinstance(value, dict):
            value = ",".join(f"{key}={item}" for key, item in sorted(value.items()))  # noqa: PLW2901
        words += [f"--{name}" if len(name) > 1 else f"-{name}", str(value)]
    return words


def variables(call: dict[str, Any], number: int, root: str) -> dict[str, Any]:
    """The ``SM_`` variables and those of ranks, for folders below ``root``; what is no text is written as JSON."""
    own, hosts, config = _own(call), names(call), resources(call, number)
    cpus = len(os.sched_getaffinity(0))
    channels = {name: f"{root}/input/data/{name}" for name in call["channels"]}
    for entry in call["laid"]:
        if entry["host"] == number and entry["channel"]:
            channels[entry["channel"]] = f"{root}/{entry['to']}"
    module = os.path.splitext(call["program"])[0]
    found: dict[str, Any] = {
        "TRAINING_JOB_NAME" if call["contract"] == "training" else "PROCESSING_JOB_NAME": call["name"],
        "SM_MODEL_DIR": f"{root}/model",
        "SM_INPUT_DIR": f"{root}/input",
        "SM_INPUT_CONFIG_DIR": f"{root}/input/config",
        "SM_INPUT_DATA_CONFIG": call["input_config"],
        "SM_OUTPUT_DIR": f"{root}/output",
        "SM_OUTPUT_DATA_DIR": f"{root}/output/data",
        "SM_OUTPUT_INTERMEDIATE_DIR": f"{root}/output/intermediate",
        "SM_CHANNELS": sorted(channels),
        **{f"SM_CHANNEL_{name.upper()}": path for name, path in channels.items()},
        "SM_HPS": own,
        **{f"SM_HP_{name.upper().replace('-', '_')}": value for name, value in own.items()},
        "SM_USER_ARGS": arguments(call),
        "SM_NUM_CPUS": cpus,
        "SM_NUM_GPUS": _gpus(),
        "SM_NUM_NEURONS": 0,
        "SM_HOSTS": hosts,
        "SM_CURRENT_HOST": hosts[number],
        "SM_CURRENT_INSTANCE_TYPE": call["machine"],
        "SM_CURRENT_INSTANCE_GROUP": GROUP,
        "SM_INSTANCE_GROUPS": [GROUP],
        "SM_NETWORK_INTERFACE_NAME": config["network_interface_name"],
        "SM_RESOURCE_CONFIG": config,
        "SM_MODULE_NAME": module,
        "SM_MODULE_DIR": f"{root}/code",
        "SM_USER_ENTRY_POINT": call["program"],
        "SM_LOG_LEVEL": 20,
        "SM_FRAMEWORK_PARAMS": {n: v for n, v in call["hyperparameters"].items() if n.startswith("sagemaker_")},
        "RANK": number,
        "WORLD_SIZE": len(hosts),
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 7777,
    }
    found["SM_TRAINING_ENV"] = _training_env(found, call)
    return found


def _training_env(found: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    """The same once more, as one JSON value."""
    return {
        "additional_framework_parameters": found["SM_FRAMEWORK_PARAMS"],
        "channel_input_dirs": {name: found[f"SM_CHANNEL_{name.upper()}"] for name in found["SM_CHANNELS"]},
        "current_host": found["SM_CURRENT_HOST"],
        "hosts": found["SM_HOSTS"],
        "hyperparameters": found["SM_HPS"],
        "input_config_dir": found["SM_INPUT_CONFIG_DIR"],
        "input_data_config": found["SM_INPUT_DATA_CONFIG"],
        "input_dir": found["SM_INPUT_DIR"],
        "is_master": found["RANK"] == 0,
        "job_name": call["name"],
        "log_level": found["SM_LOG_LEVEL"],
        "master_hostname": found["SM_HOSTS"][0],
        "model_dir": found["SM_MODEL_DIR"],
        "module_dir": found["SM_MODULE_DIR"],
        "module_name": found["SM_MODULE_NAME"],
        "network_interface_name": found["SM_NETWORK_INTERFACE_NAME"],
        "num_cpus": found["SM_NUM_CPUS"],
        "num_gpus": found["SM_NUM_GPUS"],
        "output_data_dir": found["SM_OUTPUT_DATA_DIR"],
        "output_dir": found["SM_OUTPUT_DIR"],
        "output_intermediate_dir": found["SM_OUTPUT_INTERMEDIATE_DIR"],
        "resource_config": found["SM_RESOURCE_CONFIG"],
        "user_entry_point": found["SM_USER_ENTRY_POINT"],
    }


def _gpus() -> int:
    return sum(1 for number in range(16) if os.path.exists(f"/dev/nvidia{number}"))
