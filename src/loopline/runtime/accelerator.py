"""JSON at the speed of compiled code, where loopline's own installation can lend it to this interpreter.

The environment of a model has none of loopline's packages, and must not see them: they could shadow its own. One
compiled module of them, msgspec's core, is loaded here by its path, and leaves nothing behind in ``sys.modules``.
It fits only the very interpreter and platform that its file name says; everywhere else the standard library does.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "msgspec"
_CORE = f"{PACKAGE}._core"
_UTILS = f"{PACKAGE}._utils"


def load(folder: str | None) -> Any:
    """The compiled module out of the package folder; None when it is not there or not for this interpreter."""
    if not folder:
        return None
    files = (Path(folder) / f"_core{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        return None
    # The environment's own msgspec, if it was imported before, comes back; its later imports find no trace of ours.
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == PACKAGE}
    try:
        return _load(Path(folder), path)
    except Exception:  # noqa: BLE001 - what cannot be loaded is done without
        return None
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)


def _load(folder: Path, path: Path) -> ModuleType:
    package = ModuleType(PACKAGE)
    package.__path__ = []  # nothing but the two modules below is to be found in it
    sys.modules[PACKAGE] = package
    _execute(_UTILS, importlib.machinery.SourceFileLoader(_UTILS, str(folder / "_utils.py")))
    return _execute(_CORE, importlib.machinery.ExtensionFileLoader(_CORE, str(path)))


def _execute(name: str, loader: Any) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module
