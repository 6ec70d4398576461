"""What steps give, as files: saved so that equal values give equal bytes where the format allows it, and loaded again.

| value | format |
|---|---|
| JSON through and through, numpy scalars and tuples included (they come back as numbers and lists) | ``json`` |
| numpy array without objects | ``npy`` |
| table of pandas, Polars or PyArrow | ``parquet``, if the environment can write it |
| ``Path`` of a file or folder | ``file``, ``folder``: copied |
| anything else | ``joblib`` (plain pickle where joblib is missing): executable |
"""

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

INLINE_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh")
# pickle (protocol 2 to 5), HDF5 (Keras), and what a pickle may be compressed with: gzip, zlib, xz, bzip2, lzma, lz4
_EXECUTABLE_STARTS = (
    *(bytes((0x80, protocol)) for protocol in range(2, 6)),
    b"\x89HDF",
    b"\x1f\x8b",
    *(bytes((0x78, level)) for level in (0x01, 0x5E, 0x9C, 0xDA)),
    b"\xfd7zXZ",
    b"BZh",
    b"\x5d\x00\x00",
    b"\x04\x22\x4d\x18",
)


class OutputError(ValueError):
    """What a step returned cannot be kept; the message says which output and why."""


class _NotJson(Exception):
    """Somewhere in a value there is something that JSON does not have."""


def split(result: Any, names: list[str], function: str) -> dict[str, Any]:
    """What a step returned, by output name. One output is the result as it is. Raises ``OutputError``."""
    if len(names) == 1:
        return {names[0]: result}
    if isinstance(result, dict) and set(result) == set(names):
        return {name: result[name] for name in names}
    if isinstance(result, tuple | list) and len(result) == len(names):
        return dict(zip(names, result, strict=True))
    got = f"a {type(result).__name__}"
    if isinstance(result, tuple | list):
        got += f" of {len(result)}"
    elif isinstance(result, dict):
        got += f" with {', '.join(map(str, result)) or 'nothing'}"
    raise OutputError(f"{function} gives {', '.join(names)}: return a tuple in this order or a dict, not {got}")


# -- saving -----------------------------------------------------------------------------------------------------------


def save(name: str, value: Any, folder: str) -> dict[str, Any]:
    """Write ``value`` below ``folder/outputs`` and return its entry of the manifest. Raises ``OutputError``."""
    if isinstance(value, os.PathLike):
        return _save_path(name, os.path.abspath(os.fspath(value)), folder)
    try:
        return _save_json(name, _plain(value), folder)
    except (_NotJson, RecursionError, UnicodeEncodeError):
        pass
    for writer in (_save_array, _save_table):
        entry = writer(name, value, folder)
        if entry is not None:
            return entry
    return _save_object(name, value, folder)


def _plain(value: Any) -> Any:
    """``value`` as JSON types; raises ``_NotJson`` when it is more than that, NaN and infinity included."""
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float:
        if value - value != 0:
            raise _NotJson
        return value
    if kind in (list, tuple):
        return [_plain(item) for item in value]
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise _NotJson
        return {key: _plain(item) for key, item in value.items()}
    if kind.__module__ == "numpy" and not hasattr(value, "__len__") and hasattr(value, "item"):
        item = value.item()
        if type(item) in (bool, int, float, str):
            return _plain(item)
    raise _NotJson


def _write(folder: str, path: str, data: bytes) -> dict[str, Any]:
    descriptor = os.open(f"{folder}/{path}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    return {"path": path, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "executable": False}


def _save_json(name: str, value: Any, folder: str) -> dict[str, Any]:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    entry = {"format": "json", **_write(folder, f"outputs/{name}.json", data)}
    return {**entry, "value": value} if len(data) <= INLINE_BYTES else entry


def _save_array(name: str, value: Any, folder: str) -> dict[str, Any] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject:
        return None
    path = f"outputs/{name}.npy"
    numpy.save(f"{folder}/{path}", value, allow_pickle=False)
    return {"format": "npy", **_describe(folder, path, executable=False)}


def _save_table(name: str, value: Any, folder: str) -> dict[str, Any] | None:
    """None when it is no table, or one that Parquet or this environment cannot keep."""
    path = f"outputs/{name}.parquet"
    target = f"{folder}/{path}"
    library = _library(value)
    try:
        if library == "pandas":
            value.to_parquet(target)
        elif library == "polars":
            value.write_parquet(target)
        elif library == "pyarrow":
            from pyarrow import parquet

            parquet.write_table(value, target)
        else:
            return None
    except Exception as error:  # noqa: BLE001 - whatever it is, the value is kept another way
        sys.stderr.write(f"[loopline] {name} is not kept as Parquet: {error}\n")
        if os.path.exists(target):
            os.unlink(target)
        return None
    return {"format": "parquet", **_describe(folder, path, executable=False)}


def _library(value: Any) -> str | None:
    """Which library a table is of; None when it is no table."""
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    return root if (root, kind.__name__) in _TABLES else None


_TABLES = {("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "Table")}


def _save_object(name: str, value: Any, folder: str) -> dict[str, Any]:
    path = f"outputs/{name}.joblib"
    try:
        try:
            import joblib
        except ModuleNotFoundError:
            import pickle

            with open(f"{folder}/{path}", "wb") as file:
                pickle.dump(value, file, protocol=5)
        else:
            joblib.dump(value, f"{folder}/{path}", protocol=5)
    except Exception as error:
        raise OutputError(f"the output {name!r}, a {type(value).__name__}, cannot be kept: {error}") from error
    return {"format": "joblib", **_describe(folder, path, executable=True)}


def _describe(folder: str, path: str, executable: bool) -> dict[str, Any]:
    size, digest = digest_file(f"{folder}/{path}")
    return {"path": path, "size_bytes": size, "sha256": digest, "executable": executable}


def digest_file(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file."""
    size, sha = 0, hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            size += len(chunk)
            sha.update(chunk)
    return size, sha.hexdigest()


# -- files and folders ------------------------------------------------------------------------------------------------


def _save_path(name: str, source: str, folder: str) -> dict[str, Any]:
    if not os.path.exists(source):
        raise OutputError(f"the output {name!r} is the path {source}, where nothing is")
    if not os.path.isdir(source):
        path = f"outputs/{name}/{os.path.basename(source)}"
        os.makedirs(f"{folder}/outputs/{name}", exist_ok=True)
        return {"format": "file", "path": path, **copy_file(source, f"{folder}/{path}")}
    target = f"{folder}/outputs/{name}"
    files, executable = copy_folder(source, target)
    # The canonical list of a folder's files, byte for byte as the blob store writes it: equal folders, equal digests.
    manifest = json.dumps({"files": files}, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return {
        "format": "folder",
        "path": f"outputs/{name}",
        "size_bytes": sum(file["size_bytes"] for file in files),
        "sha256": hashlib.sha256(manifest).hexdigest(),
        "executable": executable,
        "files": files,
    }


def copy_folder(source: str, target: str) -> tuple[list[dict[str, Any]], bool]:
    """Copy a folder; returns its files sorted by path and whether any is executable. Raises ``OutputError``."""
    files, executable = [], False
    for directory, _, names in os.walk(source, followlinks=True, onerror=_raise):
        for file_name in names:
            path = os.path.relpath(os.path.join(directory, file_name), source)
            os.makedirs(os.path.dirname(f"{target}/{path}"), exist_ok=True)
            entry = copy_file(f"{source}/{path}", f"{target}/{path}")
            executable = entry.pop("executable") or executable
            mode_x = bool(os.stat(f"{target}/{path}").st_mode & stat.S_IXUSR)
            files.append({"path": path, **entry, "mode_x": mode_x})
    os.makedirs(target, exist_ok=True)
    return sorted(files, key=lambda file: file["path"]), executable


def _raise(error: OSError) -> None:
    raise error


def copy_file(source: str, target: str) -> dict[str, Any]:
    """Copy one file, a link's target in its place, with its executable bit; the digest is that of the copied bytes."""
    found = os.stat(source)
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{source} is neither a file nor a folder")
    size, sha, start = 0, hashlib.sha256(), b""
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while chunk := reader.read(CHUNK_BYTES):
            start = start or chunk
            size += len(chunk)
            sha.update(chunk)
            writer.write(chunk)
    os.chmod(target, 0o700 if found.st_mode & stat.S_IXUSR else 0o600)
    executable = source.endswith(_CODE_SUFFIXES) or _may_run(start, target)
    return {"size_bytes": size, "sha256": sha.hexdigest(), "executable": executable}


def _may_run(start: bytes, path: str) -> bool:
    """Whether opening these bytes as a model may run code, by content: a pickle, or an archive with one in it."""
    if start.startswith(_EXECUTABLE_STARTS):
        return True
    if not start.startswith(b"PK\x03\x04"):
        return False
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", ".pickle", ".joblib", ".h5", ".py")) for name in archive.namelist())
    except zipfile.BadZipFile:
        return True


# -- loading ----------------------------------------------------------------------------------------------------------


def load(path: str, form: str, select: list[str | int], hint: str | None) -> Any:
    """A saved value. ``select``: the part of its JSON. ``hint`` (see ``hint_of``): what the step wants it as.

    ``form`` is a format of the manifest, or ``asset``: a data asset, read by its suffix when there is no hint.
    """
    if hint == "path":
        return _path(path)
    if form == "json":
        with open(path, "rb") as file:
            value = json.loads(file.read())
        for part in select:
            value = value[part]
        return value
    if form in ("asset", "file") and (hint or form == "asset") and os.path.isfile(path):
        from . import tables

        return tables.read(path, hint)
    if form == "npy":
        import numpy

        return numpy.load(path, allow_pickle=False)
    readers: dict[str, Callable[[str], Any]] = {"joblib": _load_object}
    if form == "parquet":
        from . import tables

        return tables.read_parquet(path, hint)
    return readers.get(form, _path)(path)


def _path(path: str) -> Any:
    from pathlib import Path

    return Path(path)


def _load_object(path: str) -> Any:
    try:
        import joblib
    except ModuleNotFoundError:
        import pickle

        with open(path, "rb") as file:
            return pickle.load(file)  # noqa: S301 - written by an earlier step of the same execution
    return joblib.load(path)


_HINTS = {
    ("pathlib", "Path"): "path",
    ("pathlib", "PosixPath"): "path",
    ("pandas", "DataFrame"): "pandas",
    ("polars", "DataFrame"): "polars",
    ("pyarrow", "Table"): "pyarrow",
    ("numpy", "ndarray"): "numpy",
    ("builtins", "list"): "rows",
}


def hint_of(annotation: Any, function: Any) -> str | None:
    """What a step's annotation asks for: path, pandas, polars, pyarrow, numpy, rows (a list of dicts), or nothing."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, function.__globals__)  # noqa: S307 - the step's own annotation
        except Exception:  # noqa: BLE001 - an annotation is a hint, never a reason to fail
            return None
    annotation = getattr(annotation, "__origin__", annotation)
    root = str(getattr(annotation, "__module__", "")).partition(".")[0]
    return _HINTS.get((root, getattr(annotation, "__name__", "")))
