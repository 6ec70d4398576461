"""The rules of the house that import-linter cannot see, each shown able to fail on a bad snippet.

A rule is a function from one module (its path below the package, and its text) to what is wrong with it.
"""

import ast
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "loopline"

LONG_HINT, LONG_STOP = 500, 800
LONG_WITH_A_REASON: dict[str, str] = {}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
# What a module in a project's environment may import lazily: the formats of outputs and models.
ENVIRONMENTS_OWN = {"joblib", "numpy", "pandas", "pyarrow"}


class Module(NamedTuple):
    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def is_in(self, *places: str) -> bool:
        return any(self.path == place or (place.endswith("/") and self.path.startswith(place)) for place in places)


def modules() -> list[Module]:
    return [Module(str(p.relative_to(PACKAGE)), p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names of absolute imports; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def imports_only_in(module: Module, names: set[str], *places: str) -> list[str]:
    if module.is_in(*places):
        return []
    return [
        f"{module.path}:{line} imports {name}; only {', '.join(places)} may"
        for name, line in imports(module.tree)
        if any(name == wanted or name.startswith(wanted + ".") for wanted in names)
    ]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return dotted(node.func)
    return node.id if isinstance(node, ast.Name) else ""


def no_file_is_too_long(module: Module) -> list[str]:
    lines = module.text.count("\n")
    if lines > LONG_HINT:
        warnings.warn(f"{module.path} has {lines} lines; {LONG_HINT} is the hint", stacklevel=2)
    if lines > LONG_STOP and module.path not in LONG_WITH_A_REASON:
        return [f"{module.path} has {lines} lines; {LONG_STOP} is the stop"]
    return []


def modules_have_names(module: Module) -> list[str]:
    parts = module.path.removesuffix(".py").split("/")
    return [f"{module.path}: {part!r} says nothing" for part in parts if part.strip("_") in NAMELESS]


def errors_stand_in_errors_py(module: Module) -> list[str]:
    # What runs inside jobs knows nothing of loopline, its errors included: it derives from the built-in ones.
    if module.is_in("errors.py", "runtime/", "sdk/pipeline.py"):
        return []
    ours = {n.name for n in ast.walk(ast.parse((PACKAGE / "errors.py").read_text())) if isinstance(n, ast.ClassDef)}
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            names = [dotted(base).rsplit(".", 1)[-1] for base in node.bases]
            if any(name.endswith(("Error", "Exception", "Warning")) or name in ours for name in names):
                found.append(f"{module.path}:{node.lineno} defines the error {node.name}")
    return found


def sets_status(call: ast.Call) -> bool:
    """Whether this is `update(...)....values(status=...)` or the same with a dict."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "values"):
        return False
    if not re.search(r"(^|\.)update\b", dotted(call.func)):
        return False
    keys = [word.arg for word in call.keywords]
    for given in call.args:
        if isinstance(given, ast.Dict):
            keys += [key.value if isinstance(key, ast.Constant) else dotted(key) for key in given.keys if key]
    return any(key == "status" or str(key).endswith(".status") for key in keys)


def status_changes_in_records_only(module: Module) -> list[str]:
    if module.is_in("store/records.py"):
        return []
    found = []
    for node in ast.walk(module.tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        by_text = re.search(r"\bupdate\s+\S+\s+set\b[^;]*\bstatus\s*=", text, re.I)
        if by_text or (isinstance(node, ast.Call) and sets_status(node)):
            found.append(f"{module.path}:{node.lineno} updates a status; records.move does")
    return found


def sql_in_store_and_control_only(module: Module) -> list[str]:
    return imports_only_in(
        module, {"sqlalchemy", "alembic", "sqlite3", "psycopg"}, "store/", "control/", "testing/postgres.py"
    )


def environment_is_read_in_config_only(module: Module) -> list[str]:
    # runtime/ runs in jobs and model servers, which have no settings: what they are told comes in the environment.
    if module.is_in("config.py", "runtime/"):
        return []
    read = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
    by_name = {f"os.{n}" for n in ("environ", "getenv", "environb")}
    return [
        f"{module.path}:{node.lineno} reads the environment; config.py does"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and dotted(node) in read
    ] + [f"{module.path}:{line} imports {name}" for name, line in imports(module.tree) if name in by_name]


def packages_state_their_law(module: Module) -> list[str]:
    if not module.path.endswith("__init__.py") or ast.get_docstring(module.tree):
        return []
    return [f"{module.path} has no docstring"]


def pickle_in_handlers_only(module: Module) -> list[str]:
    unsafe = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
    # values.py: what one step of an execution hands to the next, inside sandboxed jobs, where joblib is missing.
    places = ("runtime/handlers/", "runtime/values.py")
    return imports_only_in(module, unsafe, *places) + imports_only_in(module, {"joblib"}, "runtime/")


def domain_opens_and_prints_nothing(module: Module) -> list[str]:
    if not module.is_in("domain/"):
        return []
    does_io = {"open", "io.open", "io.FileIO", "print", "input", "np.load", "np.save", "numpy.load", "numpy.save"}
    clocks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    found = []
    for node in ast.walk(module.tree):
        name = dotted(node) if isinstance(node, ast.Call) else ""
        unseeded = name.endswith("random.default_rng") and isinstance(node, ast.Call) and not node.args
        if name in does_io or unseeded or any(name == clock or name.endswith("." + clock) for clock in clocks):
            found.append(f"{module.path}:{node.lineno} calls {name}; files, time and randomness come as arguments")
    return found


def clouds_stay_in_their_corner(module: Module) -> list[str]:
    return imports_only_in(module, {"boto3", "botocore"}, "fronts/aws/", "store/s3.py") + imports_only_in(
        module, {"ray"}, "compute/ray.py"
    )


def outbound_alone_calls_out(module: Module) -> list[str]:
    senders = {"urllib.request", "http.client", "smtplib", "ftplib", "requests", "httpx", "aiohttp", "urllib3"}
    own_gateway = "control/invoking.py"  # a socket of this installation
    return imports_only_in(module, senders, "outbound/", own_gateway, "sdk/client.py", "store/s3.py", "testing/")


def jobs_side_is_standard_library(module: Module) -> list[str]:
    if not module.is_in("runtime/", "sdk/pipeline.py"):
        return []
    siblings = {p.stem for p in (PACKAGE / "runtime").rglob("*.py")} | {"handlers"}
    allowed = set(sys.stdlib_module_names) | (siblings if module.is_in("runtime/") else set())
    at_start = {
        name for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom) for name, _ in imports(node)
    }
    found = []
    for name, line in imports(module.tree):
        top = name.split(".")[0]
        lazily = name not in at_start and module.is_in("runtime/") and top in ENVIRONMENTS_OWN
        if top == "loopline" and name.startswith("loopline.runtime") and module.is_in("runtime/"):
            continue
        handlers_own = module.is_in("runtime/handlers/") and name not in at_start and top != "loopline"
        if top not in allowed and not lazily and not handlers_own:
            found.append(f"{module.path}:{line} imports {name}, which an environment need not have")
    return found


Rule = Callable[[Module], list[str]]
# rule, a module that breaks it, a module near it that does not
RULES: list[tuple[Rule, Module, Module]] = [
    (no_file_is_too_long, Module("control/x.py", "\n" * 801), Module("control/x.py", "\n" * 400)),
    (modules_have_names, Module("store/_helpers.py", ""), Module("store/baseline.py", "")),
    (
        errors_stand_in_errors_py,
        Module("control/x.py", "from loopline import errors\nclass Missing(errors.NotFound): ..."),
        Module("control/x.py", "class ErrorReport: ..."),
    ),
    (
        status_changes_in_records_only,
        Module("control/x.py", "tx.execute(sa.update(t).where(t.c.id == 1).values(status='Approved'))"),
        Module("control/x.py", "tx.execute(sa.update(t).where(t.c.status == 'x').values(note='n'))"),
    ),
    (
        status_changes_in_records_only,
        Module("store/x.py", "tx.execute(t.update().values({'status': 'Approved'}))"),
        Module("store/records.py", "tx.execute(t.update().values({'status': 'Approved'}))"),
    ),
    (
        status_changes_in_records_only,
        Module("engine/x.py", "SQL = 'UPDATE versions SET note = 1, status = 2 WHERE id = 3'"),
        Module("engine/x.py", "SQL = 'insert into versions (status) values (2)'"),
    ),
    (
        sql_in_store_and_control_only,
        Module("fronts/x.py", "import sqlalchemy as sa"),
        Module("control/x.py", "import sqlalchemy as sa"),
    ),
    (
        environment_is_read_in_config_only,
        Module("gateway/x.py", "import os\nport = os.environ['PORT']"),
        Module("config.py", "import os\nport = os.environ['PORT']"),
    ),
    (
        environment_is_read_in_config_only,
        Module("gateway/x.py", "from os import getenv"),
        Module("gateway/x.py", "from os import getpid"),
    ),
    (packages_state_their_law, Module("store/__init__.py", "import os"), Module("store/__init__.py", '"""Facts."""')),
    (
        pickle_in_handlers_only,
        Module("control/x.py", "def f():\n    import pickle"),
        Module("runtime/handlers/joblib.py", "import pickle"),
    ),
    (
        domain_opens_and_prints_nothing,
        Module("domain/x.py", "import datetime\nat = datetime.datetime.now()"),
        Module("domain/x.py", "import datetime\nat = datetime.datetime.fromtimestamp(now)"),
    ),
    (
        domain_opens_and_prints_nothing,
        Module("domain/x.py", "draw = np.random.default_rng()"),
        Module("domain/x.py", "draw = np.random.default_rng(seed)"),
    ),
    (
        domain_opens_and_prints_nothing,
        Module("domain/x.py", "text = open('x').read()"),
        Module("control/x.py", "text = open('x').read()"),
    ),
    (
        clouds_stay_in_their_corner,
        Module("fronts/native/x.py", "from botocore import auth"),
        Module("fronts/aws/x.py", "from botocore import auth"),
    ),
    (
        outbound_alone_calls_out,
        Module("control/x.py", "from urllib import request"),
        Module("control/x.py", "from urllib import parse"),
    ),
    (
        jobs_side_is_standard_library,
        Module("runtime/x.py", "import numpy"),
        Module("runtime/x.py", "import json\ndef f():\n    import numpy"),
    ),
    (
        jobs_side_is_standard_library,
        Module("sdk/pipeline.py", "def f():\n    from loopline import errors"),
        Module("sdk/client.py", "from loopline import errors"),
    ),
    (
        jobs_side_is_standard_library,
        Module("runtime/handlers/x.py", "def f():\n    from loopline.errors import NotFound"),
        Module("runtime/handlers/x.py", "def f():\n    import onnxruntime"),
    ),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in RULES), ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    found = [problem for module in modules() for problem in rule(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "bad", "good"), RULES, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_tells_bad_from_good(rule: Rule, bad: Module, good: Module) -> None:
    assert rule(bad)
    assert rule(good) == []


def test_the_package_is_found() -> None:
    assert {"errors.py", "domain/states.py"} <= {module.path for module in modules()}


def test_an_exception_to_the_length_rule_is_still_needed() -> None:
    long = {module.path for module in modules() if module.text.count("\n") > LONG_STOP}
    assert set(LONG_WITH_A_REASON) <= long
    assert all(LONG_WITH_A_REASON.values())
