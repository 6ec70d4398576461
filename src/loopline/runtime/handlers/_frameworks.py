"""What the containers of AWS's frameworks do where an inference script says nothing, by what its model is.

An XGBoost ``Booster`` is asked with a ``DMatrix``, a torch module with a float tensor and without gradients, a
transformers pipeline with ``inputs`` and ``parameters``; all else by ``predict``. Sources: ``handler_service.py`` of
aws/sagemaker-xgboost-container, aws/sagemaker-scikit-learn-container and aws/sagemaker-huggingface-inference-toolkit,
``default_pytorch_inference_handler.py`` of aws/sagemaker-pytorch-inference-toolkit.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .. import formats
from ..answers import ModelError
from ..loading import CannotServe
from . import joblib

BOOSTER = "xgboost-model"  # the file that AWS's own algorithm writes
BOOSTERS = (".ubj", ".bst")
TORCH_SCRIPT = "model.pt"
TORCH_SCRIPTS = (".pt", ".pth")
CONFIGURATION = "config.json"
LIBSVM = frozenset(("text/libsvm", "text/x-libsvm"))
_TASKS = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
)


class Usual(NamedTuple):
    """The parts that a script may leave out: (body, content type) -> input, (input, model) -> result, (result, type) ->
    body."""

    read: Callable[[Any, str], Any]
    ask: Callable[[Any, Any], Any]
    write: Callable[[Any, str], Any]


def usual(model: Any) -> Usual:
    """What is usual for a model of this class."""
    classes = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    if "xgboost.Booster" in classes:
        return Usual(_matrix, lambda given, booster: booster.predict(given, validate_features=False), formats.encode)
    if "torch.Module" in classes:
        return Usual(_tensor, _forward, _written)
    if "transformers.Pipeline" in classes:
        return Usual(_plain, _pipe, formats.encode)
    return Usual(formats.decode, _predict, formats.encode)


def _predict(given: Any, model: Any) -> Any:
    predict = getattr(model, "predict", model)
    if not callable(predict):
        raise ModelError(f"a {type(model).__name__} cannot be asked; define predict_fn(data, model) in the script")
    return predict(given)


# -- loading ----------------------------------------------------------------------------------------------------------


def read_model(model_dir: str, code_dir: str | None) -> Any:
    """The model of a script without ``model_fn``: a booster, TorchScript, a folder of transformers, or the one pickle.

    Raises ``CannotServe``.
    """
    names = sorted(os.listdir(model_dir))  # noqa: PTH208 - names are all that is needed
    if os.environ.get("HF_TASK") or CONFIGURATION in names:
        return _pipeline(Path(model_dir))
    booster = _one(names, BOOSTER, BOOSTERS)
    if booster is not None:
        model = importlib.import_module("xgboost").Booster()
        model.load_model(f"{model_dir}/{booster}")
        return model
    script = _one(names, TORCH_SCRIPT, TORCH_SCRIPTS)
    if script is not None:
        torch = importlib.import_module("torch")
        return torch.jit.load(f"{model_dir}/{script}", map_location=_device(torch))
    return joblib.read_model(model_dir, code_dir)


def _one(names: list[str], usual_name: str, suffixes: tuple[str, ...]) -> str | None:
    """The file of that name, or the only one that ends so."""
    if usual_name in names:
        return usual_name
    found = [name for name in names if name.endswith(suffixes)]
    if len(found) > 1:
        raise CannotServe(f"which of {', '.join(found)} is the model? call it {usual_name}")
    return found[0] if found else None


def _pipeline(folder: Path) -> Any:
    """A transformers pipeline of a folder, for the task that ``HF_TASK`` names or the architecture was made for."""
    task = os.environ.get("HF_TASK") or _task(folder / CONFIGURATION)
    return importlib.import_module("transformers").pipeline(task, model=str(folder), tokenizer=str(folder))


def _task(path: Path) -> str:
    try:
        names = [str(name) for name in json.loads(path.read_text()).get("architectures") or ()]
    except (OSError, ValueError, AttributeError):
        raise CannotServe(f"{CONFIGURATION} is not the configuration of a model of transformers") from None
    for name in names:
        for end, task in _TASKS:
            if name.endswith(end):
                return task
    raise CannotServe(f"{CONFIGURATION} names {', '.join(names) or 'no architecture'}: HF_TASK says what it is for")


# -- asking -----------------------------------------------------------------------------------------------------------


def _matrix(body: Any, content_type: str) -> Any:
    xgboost = importlib.import_module("xgboost")
    if formats.plain(content_type) in LIBSVM:
        return xgboost.DMatrix(_sparse(body.decode() if isinstance(body, bytes) else body))
    table = importlib.import_module("numpy").asarray(formats.decode(body, content_type), dtype="float32")
    return xgboost.DMatrix(table.reshape(1, -1) if table.ndim == 1 else table)


def _sparse(text: str) -> Any:
    """Lines of ``[label] index:value ...`` as a sparse table."""
    values: list[float] = []
    columns: list[int] = []
    ends = [0]
    for line in text.splitlines():
        cells = [cell.partition(":") for cell in line.split() if ":" in cell]
        columns += [int(index) for index, _, _ in cells]
        values += [float(value) for _, _, value in cells]
        ends.append(len(values))
    return importlib.import_module("scipy.sparse").csr_matrix((values, columns, ends))


def _device(torch: Any) -> Any:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _tensor(body: Any, content_type: str) -> Any:
    torch = importlib.import_module("torch")
    given = formats.decode(body, content_type)
    tensor = torch.FloatTensor(given) if formats.plain(content_type) in formats.TEXTS else torch.from_numpy(given)
    return tensor.to(_device(torch))


def _forward(given: Any, model: Any) -> Any:
    torch = importlib.import_module("torch")
    with torch.no_grad():
        model.to(_device(torch)).eval()
        return model(given)


def _written(result: Any, accept: str) -> bytes:
    detach = getattr(result, "detach", None)
    return formats.encode(detach().cpu().numpy() if callable(detach) else result, accept)


def _plain(body: Any, content_type: str) -> Any:
    """JSON as it stands: texts are no table."""
    return json.loads(body) if formats.plain(content_type) == formats.JSON else formats.decode(body, content_type)


def _pipe(given: Any, model: Any) -> Any:
    if not isinstance(given, dict):
        return model(given)
    return model(given.get("inputs", given), **(given.get("parameters") or {}))
