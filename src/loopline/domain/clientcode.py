"""Mistakes in scripts written for SageMaker that no server can mend, because the client itself fails on them, and the
line to write instead. Scripts are read as text and as a syntax tree; nothing of them is run.

The signatures are those of the SageMaker Python SDK 2.257, which is where scripts with these imports run; a script that
imports what only version 3 has (3.27) is read as one of version 3.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from loopline.domain import alarmlint, dashboards, literals
from loopline.errors import InvalidInput


class Mistake(NamedTuple):
    """One of them: ``line`` counts from 1; ``fix`` is what to write there, ``code`` is for programs."""

    line: int
    code: str
    message: str
    fix: str


_INLINE = re.compile(r"python3?\s+-c\s+(\"|')(.*?)\1", re.DOTALL)
_INSTALL = re.compile(r"pip3?\s+install\b[^\n#;&|]*?(?<![\w-])(sagemaker)(?![\w\[=<>~!-])")
_THIRD = re.compile(r"^\s*(?:from|import)\s+sagemaker\.(?:core|train|mlops)\b", re.MULTILINE)
_ONNX = re.compile(r"^\s*type:\s*onnx_model\b")


def find(text: str) -> list[Mistake]:
    """The mistakes of a script, or of the Python within a file of another language (CI definitions), by line.

    Raises ``InvalidInput`` for what has no Python in it that can be read.
    """
    found = list(_of_text(text))
    try:
        tree = _parse(text)
    except SyntaxError as error:
        blocks = list(_INLINE.finditer(text))
        if not blocks and not found:
            raise InvalidInput(f"line {error.lineno}: this is not Python: {error.msg}") from None
        for block in blocks:
            before = text.count("\n", 0, block.start(2))
            found += [each._replace(line=each.line + before) for each in _of_block(block[2])]
    else:
        found += _of_tree(tree, text.splitlines())
    return sorted(set(found))


def _parse(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (ValueError, RecursionError, MemoryError):
        raise InvalidInput("this cannot be read as Python") from None


def _of_block(source: str) -> list[Mistake]:
    first = len(source) - len(source.lstrip("\n"))
    lines = textwrap.dedent(source.lstrip("\n")).splitlines()
    try:
        tree = _parse("\n".join(lines))
    except SyntaxError:
        return []
    return [each._replace(line=each.line + first) for each in _of_tree(tree, lines)]


def _of_text(text: str) -> Iterator[Mistake]:
    third = _THIRD.search(text) is not None
    for number, line in enumerate(text.splitlines(), 1):
        installed = None if third else _INSTALL.search(line)
        if installed:
            fix = line[: installed.start(1)] + "'sagemaker<3'" + line[installed.end(1) :]
            message = "sagemaker 3 has no sagemaker.workflow, no estimators and no sagemaker.model: keep to 2"
            yield Mistake(number, "sdk-version", message, fix.strip())
        if _ONNX.match(line):
            message = "there is no asset of the type onnx_model; it is custom_model, mlflow_model or triton_model"
            yield Mistake(number, "asset-type", message, line.strip().replace("onnx_model", "custom_model"))


# -- what names stand for ---------------------------------------------------------------------------------------------


class _Script:
    """A module with what its names stand for, as far as its imports and assignments tell."""

    def __init__(self, tree: ast.Module, lines: list[str]) -> None:
        self.tree, self.lines = tree, lines
        self._imported: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.third = _THIRD.search("\n".join(lines)) is not None
        for node in ast.walk(tree):
            self._note(node)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            self._imported.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom) and node.module:
            self._imported.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        elif isinstance(node, ast.FunctionDef):
            self.functions[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self._kinds[target.id] = self._kind_of_call(node.value)
        elif isinstance(node, ast.With):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name):
                    self._kinds[item.optional_vars.id] = self._kind_of_call(item.context_expr)

    def _kind_of_call(self, call: ast.Call) -> str:
        name = self.dotted(call.func)
        return "Predictor" if name.endswith(".deploy") else name.rpartition(".")[2]

    def dotted(self, node: ast.AST) -> str:
        """``sagemaker.workflow.pipeline.Pipeline.describe`` for what the script calls ``Pipeline.describe``."""
        if isinstance(node, ast.Attribute):
            return f"{self.dotted(node.value)}.{node.attr}"
        return self._imported.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    def kind(self, node: ast.AST) -> str:
        """The class of what an expression gives, by its last name; empty where it cannot be told."""
        if isinstance(node, ast.Name):
            return self._kinds.get(node.id, "")
        return self._kind_of_call(node) if isinstance(node, ast.Call) else ""


class _Call(NamedTuple):
    """A call with its name, the object it is asked of, and its keywords."""

    node: ast.Call
    name: str
    method: str
    owner: str  # the class of the object, where it is known
    words: dict[str, ast.expr]
    functions: dict[str, ast.FunctionDef]  # the module's
    third: bool  # the script is one for version 3 of the SDK

    def mistake(self, code: str, message: str, fix: str) -> Mistake:
        return Mistake(self.node.lineno, code, message, fix)

    def but(self, *, name: str | None = None, drop: tuple[str, ...] = (), **changed: str) -> str:
        """The call with keywords dropped, replaced (``x="new text"``) or added."""
        words = {key: ast.unparse(value) for key, value in self.words.items() if key not in drop}
        words |= changed
        given = [ast.unparse(each) for each in self.node.args] + [f"{key}={value}" for key, value in words.items()]
        return f"{name or ast.unparse(self.node.func)}({', '.join(given)})"


def _of_tree(tree: ast.Module, lines: list[str]) -> list[Mistake]:
    script = _Script(tree, lines)
    found: list[Mistake] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            attribute = node.func if isinstance(node.func, ast.Attribute) else None
            name = script.dotted(node.func)
            owner = script.kind(attribute.value) if attribute else ""
            words = {word.arg: word.value for word in node.keywords if word.arg}
            call = _Call(node, name, name.rpartition(".")[2], owner, words, script.functions, script.third)
            for rule in _CALLS:
                found += rule(call)
    for other in _OTHERS:
        found += other(script)
    return found


# -- calls ------------------------------------------------------------------------------------------------------------


def _pipeline_describe(call: _Call) -> Iterator[Mistake]:
    if call.name == "sagemaker.workflow.pipeline.Pipeline.describe" and (call.words or call.node.args):
        message = "describe is a method of a Pipeline object, not of the class: TypeError"
        yield call.mistake("pipeline-describe", message, call.but(name="Pipeline"))


_OLD = {"train_instance_type": "instance_type", "train_instance_count": "instance_count"}
_FRAMEWORKS = {
    "SKLearn": {"framework_version": '"1.2-1"'},
    "PyTorch": {"framework_version": '"2.1"', "py_version": '"py310"'},
    "TensorFlow": {"framework_version": '"2.13"', "py_version": '"py310"'},
    "XGBoost": {"framework_version": '"1.7-1"'},
}


def _estimator(call: _Call) -> Iterator[Mistake]:
    if call.third or not call.name.startswith("sagemaker.") or not call.method[:1].isupper():
        return
    old = {name: new for name, new in _OLD.items() if name in call.words}
    unseen = len(call.node.args) > 1 or any(word.arg is None for word in call.node.keywords)  # `**options`
    wanted = {} if "image_uri" in call.words or unseen else _FRAMEWORKS.get(call.method, {})
    missing = {name: value for name, value in wanted.items() if name not in call.words}
    if not old and not missing:
        return
    said = [f"{name} is {new} since version 2" for name, new in old.items()]
    said += [f"{name} is missing" for name in missing]
    renamed = {new: ast.unparse(call.words[name]) for name, new in old.items()}
    fix = call.but(name=call.method, drop=tuple(old), **renamed, **missing)
    yield call.mistake("estimator", f"{call.method}: {'; '.join(said)}", fix)


def _processing(call: _Call) -> Iterator[Mistake]:
    if call.name == "sagemaker.processing.ProcessingOutput" and "s3_data_type" in call.words:
        message = "ProcessingOutput has no s3_data_type (ProcessingInput has): TypeError"
        yield call.mistake("processing-output", message, call.but(name="ProcessingOutput", drop=("s3_data_type",)))
    if call.owner == "Processor" and call.method == "run" and "code" in call.words:
        message = "Processor.run takes no code; a ScriptProcessor does: TypeError"
        fix = 'ScriptProcessor(command=["python3"], ...) in place of Processor(...), and its import'
        yield call.mistake("processor-code", message, fix)


def _run(call: _Call) -> Iterator[Mistake]:
    if call.owner != "Run":
        return
    run = ast.unparse(call.node.func).rpartition(".")[0]
    if call.method == "log_metrics" and call.node.args:
        step = f", step={ast.unparse(call.words['step'])}" if "step" in call.words else ""
        fix = f"for name, value in {ast.unparse(call.node.args[0])}.items(): {run}.log_metric(name, value{step})"
        yield call.mistake("run-log-metrics", "a Run has log_metric, one at a time: AttributeError", fix)
    if call.method == "log_file" and {"s3_uri", "local_path"} & set(call.words):
        named = f"name={ast.unparse(call.words['name'])}" if "name" in call.words else ""
        if "s3_uri" in call.words:
            value = ast.unparse(call.words["s3_uri"])
            fix = f"{run}.log_artifact({', '.join(part for part in (named, f'value={value}') if part)})"
        else:
            path = ast.unparse(call.words["local_path"])
            fix = f"{run}.log_file({', '.join(part for part in (path, named) if part)})"
        yield call.mistake("run-log-file", "log_file takes file_path and name; a URI is an artifact: TypeError", fix)


def _predictor(call: _Call) -> Iterator[Mistake]:
    if call.method == "update_endpoint" and "data_capture_config" in call.words:
        owner = ast.unparse(call.node.func).rpartition(".")[0]
        message = "update_endpoint takes no data_capture_config: TypeError"
        fix = f"{owner}.update_data_capture_config({ast.unparse(call.words['data_capture_config'])})"
        yield call.mistake("data-capture", message, fix)


def _monitoring_schedule(call: _Call) -> Iterator[Mistake]:
    if call.method != "create_monitoring_schedule":
        return
    own = {"record_preprocessor_script", "post_processor_script", "post_analytics_processor_script", "output_s3_uri"}
    wrong_class = call.owner == "ModelMonitor" and bool(own & set(call.words))
    if not wrong_class and "post_processor_script" not in call.words:
        return
    renamed = {}
    if "post_processor_script" in call.words:
        renamed["post_analytics_processor_script"] = ast.unparse(call.words["post_processor_script"])
    said = ["it is post_analytics_processor_script"] if renamed else []
    said += ["these arguments are DefaultModelMonitor's, not ModelMonitor's"] if wrong_class else []
    fix = call.but(drop=("post_processor_script",), **renamed)
    fix += "  # of a DefaultModelMonitor(...)" if wrong_class else ""
    yield call.mistake("monitoring-schedule", f"create_monitoring_schedule: {'; '.join(said)}: TypeError", fix)


def _upsert(call: _Call) -> Iterator[Mistake]:
    role = call.words.get("role_arn")
    said = role.value if isinstance(role, ast.Constant) else None
    if call.method == "upsert" and not call.third and isinstance(said, str) and not said.startswith("arn:"):
        arn = f'"arn:aws:iam::123456789012:role/{said}"'
        message = "role_arn must be an ARN: the client refuses a bare name"
        yield call.mistake("role-arn", message, call.but(role_arn=arn))


def _third(call: _Call) -> Iterator[Mistake]:
    """Methods of version 3 (3.27) that fail in the client."""
    if call.name == "sagemaker.core.resources.ModelPackage.create":
        message = "ModelPackage.create makes the version, and then misses a name in the answer: KeyError"
        group = call.words.get("model_package_group_name")
        words = f"model_package_group_name={ast.unparse(group)}" if group is not None else "..."
        yield call.mistake("package-create", message, f"ModelBuilder(image_uri=..., ...).register({words})")
    update = call.words.get("update_endpoint")
    if call.third and call.owner == "ModelBuilder" and isinstance(update, ast.Constant) and update.value is True:
        message = "deploy(update_endpoint=True) asks for an argument that is not there: TypeError"
        fix = "endpoint.endpoint_config_name = NAME; endpoint.update()  # of EndpointConfig.create(...)"
        yield call.mistake("update-endpoint", message, fix)


def _airflow(call: _Call) -> Iterator[Mistake]:
    if call.method != "PythonOperator":
        return
    target = call.words.get("python_callable")
    function = call.functions.get(target.id) if isinstance(target, ast.Name) else None
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)] if function else []
    if any(isinstance(value, ast.Constant) and value.value is False for value in returned):
        message = "a PythonOperator that returns False skips nothing: what follows runs all the same"
        yield call.mistake("airflow-skip", message, call.but(name="ShortCircuitOperator"))


Rule = Callable[[_Call], Iterator[Mistake]]
_CALLS: tuple[Rule, ...] = (
    _pipeline_describe,
    _estimator,
    _processing,
    _run,
    _predictor,
    _monitoring_schedule,
    _upsert,
    _third,
    _airflow,
)


# -- everything else --------------------------------------------------------------------------------------------------


# What version 2 has, and where version 3 has it.
_MOVED = {
    "sagemaker.workflow": "sagemaker.mlops.workflow has pipelines and steps, sagemaker.core.workflow the rest",
    "sagemaker.estimator": "from sagemaker.train import ModelTrainer",
    "sagemaker.sklearn": "from sagemaker.train import ModelTrainer",
    "sagemaker.pytorch": "from sagemaker.train import ModelTrainer",
    "sagemaker.xgboost": "from sagemaker.train import ModelTrainer",
    "sagemaker.huggingface": "from sagemaker.train import ModelTrainer",
    "sagemaker.tensorflow": "from sagemaker.train import ModelTrainer",
    "sagemaker.inputs": "from sagemaker.train.configs import InputData",
    "sagemaker.model": "from sagemaker.serve import ModelBuilder",
    "sagemaker.predictor": "from sagemaker.core.resources import Endpoint",
    "sagemaker.processing": "from sagemaker.core.processing import ScriptProcessor",
    "sagemaker.image_uris": "from sagemaker.core import image_uris",
    "sagemaker.experiments": "from sagemaker.core.experiments import Run",
}


def _mixed(script: _Script) -> Iterator[Mistake]:
    """Imports of version 2 in a script of version 3, unless it tries them."""
    tried = {id(inner) for node in ast.walk(script.tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(script.tree):
        if not script.third or not isinstance(node, ast.ImportFrom) or not node.module or id(node) in tried:
            continue
        names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "sagemaker" else []
        for old, new in _MOVED.items():
            if any(f"{each}.".startswith(f"{old}.") for each in (node.module, *names)):
                message = f"{old} is of version 2, beside imports of version 3: ModuleNotFoundError"
                yield Mistake(node.lineno, "sdk-mixed", message, new)


def _imports(script: _Script) -> Iterator[Mistake]:
    for node in ast.walk(script.tree):
        if not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        names = [alias.name for alias in node.names]
        if module == "sagemaker.workflow.model_step" and "RegisterModel" in names:
            message = "RegisterModel is in sagemaker.workflow.step_collections: ImportError"
            yield Mistake(
                node.lineno, "import", message, "from sagemaker.workflow.step_collections import RegisterModel"
            )
        if module and (module == "azureml" or module.startswith("azureml.core")):
            message = "azureml.core is the SDK v1, which is no longer supported"
            yield Mistake(node.lineno, "azure-v1", message, "from azure.ai.ml import MLClient")


def _properties(script: _Script) -> Iterator[Mistake]:
    for node in ast.walk(script.tree):
        if isinstance(node, ast.Attribute) and node.attr == "S3ModelDataUrl":
            text = ast.unparse(node)
            if ".ModelArtifacts." in text:
                message = "the property is called S3ModelArtifacts: AttributeError"
                fix = text.replace("S3ModelDataUrl", "S3ModelArtifacts")
                yield Mistake(node.lineno, "model-artifacts", message, fix)


def _scoring(script: _Script) -> Iterator[Mistake]:
    """A scoring script of Azure ML: ``init()`` and ``run()``."""
    run = script.functions.get("run")
    if run is None or "init" not in script.functions:
        return
    for node in ast.walk(run):
        value = node.value if isinstance(node, ast.Return) else None
        if isinstance(value, ast.Tuple) and len(value.elts) == 2 and isinstance(value.elts[1], ast.Constant):
            message = "a tuple is no answer with a status: it is sent as a list with status 200"
            body, code = (ast.unparse(each) for each in value.elts)
            yield Mistake(value.lineno, "score-status", message, f"return AMLResponse({body}, {code})")


def _swallowed(script: _Script) -> Iterator[Mistake]:
    """An exception of any kind that is answered as the caller's mistake."""
    for node in ast.walk(script.tree):
        if not isinstance(node, ast.ExceptHandler) or _caught(node) not in ("", "Exception", "BaseException"):
            continue
        for inner in ast.walk(node):
            if not isinstance(inner, ast.Call) or script.dotted(inner.func).rpartition(".")[2] != "HTTPException":
                continue
            status = next((word.value for word in inner.keywords if word.arg == "status_code"), None)
            code = status.value if isinstance(status, ast.Constant) else None
            if isinstance(code, int) and 400 <= code < 500:
                message = f"every failure is answered with {code}, so that no alarm on 5xx sees the model fail"
                fix = ast.unparse(inner).replace(f"status_code={code}", "status_code=500")
                yield Mistake(inner.lineno, "error-status", message, f"raise {fix}")


def _caught(handler: ast.ExceptHandler) -> str:
    return ast.unparse(handler.type) if handler.type is not None else ""


def _labels(script: _Script) -> Iterator[Mistake]:
    """Series of dashboards whose label names another statistic than the one that they show."""
    for node in ast.walk(script.tree):
        if not isinstance(node, ast.Dict):
            continue
        value = literals.value_of(node, {})
        if isinstance(value, dict) and "stat" in value and "label" in value:
            meant = dashboards.named_statistic(str(value["label"]))
            if meant is not None and meant != value["stat"]:
                message = f"the series is labelled {value['label']!r} and shows {value['stat']}"
                yield Mistake(node.lineno, "dashboard-label", message, repr({**value, "stat": meant}))


class AlarmCall(NamedTuple):
    """A PutMetricAlarm call of a script, and what is wrong with it."""

    line: int
    name: str
    given: dict[str, Any]
    verdict: alarmlint.Verdict


def alarms(text: str) -> list[AlarmCall]:
    """The calls of a script that make an alarm with something wrong, as far as its text tells what they pass.

    Raises ``InvalidInput`` for what is no Python.
    """
    try:
        return list(_alarm_calls(_parse(text)))
    except SyntaxError as error:
        raise InvalidInput(f"line {error.lineno}: this is not Python: {error.msg}") from None


def _alarm_calls(tree: ast.Module) -> Iterator[AlarmCall]:
    for call in literals.calls(tree, "put_metric_alarm"):
        if any(isinstance(call.keywords.get(name), literals.Raw) for name in _JUDGED):
            continue
        verdict = _judged(call.keywords)
        if verdict is not None and verdict.findings:
            yield AlarmCall(call.line, str(call.keywords.get("AlarmName", "an alarm")), call.keywords, verdict)


def _alarms(script: _Script) -> Iterator[Mistake]:
    for line, name, given, (findings, better) in _alarm_calls(script.tree):
        said = "; ".join(found.message for found in findings)
        dropped = [member for member in given if member not in better]
        written = [f"{member}={value!r}" for member, value in better.items() if given.get(member) != value]
        fix = ", ".join(written) + (f"; without {', '.join(dropped)}" if dropped else "")
        yield Mistake(line, "alarm", f"{name}: {said}", fix)


_JUDGED = (
    *("Namespace", "MetricName", "Dimensions", "Statistic", "ExtendedStatistic", "Period", "EvaluationPeriods"),
    *("Threshold", "ComparisonOperator", "TreatMissingData", "Unit", "DatapointsToAlarm"),
)


def _judged(keywords: dict[str, Any]) -> alarmlint.Verdict | None:
    """The verdict on a call; None for one with values that no call can have."""
    try:
        return alarmlint.lint_call(keywords)
    except (TypeError, ValueError, AttributeError, KeyError, InvalidInput):
        return None


_OTHERS: tuple[Callable[[_Script], Iterator[Mistake]], ...] = (
    _imports,
    _mixed,
    _properties,
    _scoring,
    _swallowed,
    _labels,
    _alarms,
)
