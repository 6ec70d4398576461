"""Speaks loopline's REST from Python: errors come back as the classes they left as.

``http.client`` only, so that importing it costs little; one connection per request, so that a client may be shared by
threads and survives restarts of the server.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from loopline import config, errors
from loopline.domain.states import is_terminal
from loopline.errors import InvalidInput, LooplineError, Timeout, Unavailable

if TYPE_CHECKING:
    import ssl

CHUNK_BYTES = 1 << 16
TRIES = 5
LONGEST_PAUSE_SECONDS = 5.0
FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.1, 2.0
_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})

Changed = Callable[[dict[str, Any]], None]


class Client:
    """A server, as one key may use it.

    ``url`` and ``key`` default to ``LOOPLINE_URL`` and ``LOOPLINE_KEY``, then to what ``loopline up`` left in the data
    directory of this machine. ``timeout``: seconds that one answer may be silent.
    """

    def __init__(self, url: str | None = None, key: str | None = None, timeout: float = 60.0) -> None:
        self.url, self.key = _address(url, key)
        self.timeout = timeout
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{self.url!r} is not the address of a server; write http://HOST:PORT")
        self.authorities = _authorities(self.url) if parts.scheme == "https" else None
        self.tls = _trust(self.authorities) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")

    # -- the four verbs -----------------------------------------------------------------------------------------------

    def get(self, *path: str | int, **query: Any) -> dict[str, Any]:
        """Ask. ``path``: its parts, quoted here: ``get("runs", run)`` is ``GET /api/runs/RUN``."""
        return self._json("GET", path, query)

    def post(self, *path: str | int, **body: Any) -> dict[str, Any]:
        """Do. ``None`` values are left out."""
        return self._json("POST", path, {}, _present(body))

    def put(self, *path: str | int, **body: Any) -> dict[str, Any]:
        """Set."""
        return self._json("PUT", path, {}, _present(body))

    def delete(self, *path: str | int, **query: Any) -> dict[str, Any]:
        """Remove."""
        return self._json("DELETE", path, query)

    def invoke_function(self, name: str, body: bytes) -> tuple[str, bytes]:
        """Ask ``/functions/NAME``, with JSON; gives the answer's content type and body."""
        kind = {"content-type": "application/json"}
        with self._send("POST", (name,), {}, body, kind, root="functions") as answer:
            return answer.getheader("content-type", ""), answer.read()

    def upload(
        self,
        method: str,
        *path: str | int,
        data: Iterable[bytes],
        size: int | None = None,
        content_type: str = "application/octet-stream",
        **query: Any,
    ) -> dict[str, Any]:
        """Send bytes as they come; ``size`` in bytes spares the chunked encoding. Never sent twice."""
        headers = {"content-type": content_type}
        if size is not None:
            headers["content-length"] = str(size)
        with self._send(method, path, query, data, headers) as answer:
            return _document(answer)

    def download(self, *path: str | int, **query: Any) -> Iterator[bytes]:
        """The bytes of a file, as they come."""
        with self._send("GET", path, query) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk

    def pages(self, *path: str | int, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, over all its pages."""
        cursor = query.pop("cursor", None)
        while True:
            page = self.get(*path, **query, cursor=cursor) if cursor else self.get(*path, **query)
            yield from page["items"]
            cursor = page.get("next")
            if not cursor:
                return

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait_execution(
        self, execution: str, timeout: float | None = None, on_change: Changed | None = None
    ) -> dict[str, Any]:
        """The execution once it is over, however it ended; raises ``Timeout``. ``on_change`` sees it each time."""
        return self._wait(("executions", execution), "execution", timeout, on_change)

    def wait_push(self, push: str, timeout: float | None = None, on_change: Changed | None = None) -> dict[str, Any]:
        """The push once it has started an execution or been rejected."""
        return self._wait(("pushes", push), "push", timeout, on_change)

    def wait_rollout(
        self, rollout: str, timeout: float | None = None, on_change: Changed | None = None
    ) -> dict[str, Any]:
        """The rollout once traffic moves no more."""
        return self._wait(("rollouts", rollout), "rollout", timeout, on_change)

    def wait_evaluation(
        self, evaluation: str, timeout: float | None = None, on_change: Changed | None = None
    ) -> dict[str, Any]:
        """The gate's judgement once there is one."""
        return self._wait(("evaluations", evaluation), "evaluation", timeout, on_change)

    def wait_compilation(
        self, compilation: str, timeout: float | None = None, on_change: Changed | None = None
    ) -> dict[str, Any]:
        """The conversion of a version's model once it is over."""
        return self._wait(("compilations", compilation), "compilation", timeout, on_change)

    def wait_test_run(self, run: str, timeout: float | None = None, on_change: Changed | None = None) -> dict[str, Any]:
        """The run of tests once there is a verdict."""
        return self._wait(("test-runs", run), "test_run", timeout, on_change)

    def wait_batch(self, batch: str, timeout: float | None = None, on_change: Changed | None = None) -> dict[str, Any]:
        """The batch once it is over."""
        return self._wait(("batches", batch), "batch", timeout, on_change)

    def wait_invocation(
        self, invocation: str, timeout: float | None = None, on_change: Changed | None = None
    ) -> dict[str, Any]:
        """The asynchronous invocation once it has an answer, or none."""
        return self._wait(("async-invocations", invocation), "invocation", timeout, on_change)

    def _wait(
        self, path: tuple[str, str], noun: str, timeout: float | None, on_change: Changed | None
    ) -> dict[str, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while True:
            record = self.get(*path)
            if on_change:
                on_change(record)
            if is_terminal(noun, record["status"]):
                return record
            if deadline is not None and time.monotonic() + pause > deadline:
                raise Timeout(
                    f"the {noun.replace('_', ' ')} {path[1]} is still {record['status']} after {timeout:g} seconds"
                )
            time.sleep(pause)
            pause = min(pause * 1.3, LONGEST_POLL_SECONDS)

    # -- on the wire --------------------------------------------------------------------------------------------------

    def _json(
        self, method: str, path: tuple[str | int, ...], query: dict[str, Any], body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        # A request that carries a delivery number may be sent again: the server starts one thing for it.
        again = method in _IDEMPOTENT or (body is not None and "delivery" in body)
        for tried in range(1, TRIES + 1):
            try:
                with self._send(method, path, query, data, headers) as answer:
                    return _document(answer)
            except Unavailable as error:
                pause = error.details.get("retry_after_seconds")
                if not again or pause is None or tried == TRIES:
                    raise
                time.sleep(min(pause, LONGEST_PAUSE_SECONDS))
        raise AssertionError("the last try returns or raises")

    def _send(
        self,
        method: str,
        path: tuple[str | int, ...],
        query: dict[str, Any],
        data: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        root: str = "api",
    ) -> "_Answer":
        target = f"{self._prefix}/{root}/{'/'.join(quote(str(part), safe='') for part in path)}"
        pairs = urlencode({name: _in_query(value) for name, value in _present(query).items()}, doseq=True)
        connection = self._connection()
        given = {"accept": "application/json", **(headers or {})}
        if self.key:
            given["authorization"] = f"Bearer {self.key}"
        try:
            try:
                connection.request(method, f"{target}?{pairs}" if pairs else target, data, given)
            except (BrokenPipeError, ConnectionResetError):
                if data is None:
                    raise  # the server may refuse a body before it has read it, and says why
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _error(answer, self.url)
        except TimeoutError:
            connection.close()
            raise Timeout(f"{self.url} did not answer within {self.timeout:g} seconds") from None
        except (OSError, HTTPException) as error:
            connection.close()
            cure = "start it with `loopline up`, or set LOOPLINE_URL"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                cure = "set LOOPLINE_CA to tls/ca.pem of the server's data directory, or a copy of it"
            raise Unavailable(f"no loopline answers at {self.url} ({error}); {cure}") from None
        except LooplineError:
            connection.close()
            raise
        return _Answer(connection, answer)

    def _connection(self) -> HTTPConnection:
        if self.tls is None:
            return HTTPConnection(self._host, self._port, timeout=self.timeout)
        return HTTPSConnection(self._host, self._port, timeout=self.timeout, context=self.tls)


class _Answer:
    """An open answer; leaving the block closes the connection."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def __enter__(self) -> HTTPResponse:
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()


def _document(answer: HTTPResponse) -> dict[str, Any]:
    try:
        document = json.loads(answer.read())
    except (ValueError, HTTPException, OSError) as error:
        raise LooplineError(f"the server's answer is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise LooplineError("the server's answer is not a JSON object")
    return document


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _in_query(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _address(url: str | None, key: str | None) -> tuple[str, str | None]:
    """Where to go and with which key. A key from the data directory goes to its own server only."""
    given_url, given_key = config.client_defaults()
    url, key = url or given_url, key or given_key
    if url and key:
        return url.rstrip("/"), key
    path = config.load().dir / "client.json"
    stored = _stored(path)
    url = (url or stored.get("url") or "").rstrip("/")
    if not url:
        raise InvalidInput(f"no server is known: {path} is missing; run `loopline up`, or set LOOPLINE_URL")
    if not key and url == str(stored.get("url", "")).rstrip("/"):
        key = stored.get("key")
    return url, key


def _authorities(url: str) -> str | None:
    """The file whose authorities are trusted beside the system's: ``LOOPLINE_CA``, or this machine's own for its own
    server; None where there is neither."""
    path = config.client_ca()
    if path is not None:
        return path
    settings = config.load()
    stored = str(_stored(settings.dir / "client.json").get("url", "")).rstrip("/")
    own = settings.tls_dir / "ca.pem"
    return str(own) if stored == url and own.exists() else None


def _trust(path: str | None) -> "ssl.SSLContext":
    import ssl  # costs as much as everything else here, and http:// has no use for it

    context = ssl.create_default_context()
    try:
        if path is not None:
            context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"LOOPLINE_CA: {path} holds no certificates in PEM form: {error}") from None
    return context


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _error(answer: HTTPResponse, url: str) -> LooplineError:
    body = answer.read(1 << 20)
    try:
        told = json.loads(body)["error"]
        message, details = str(told["message"]), dict(told.get("details") or {})
        kind = _classes().get(told["code"]) or _by_status(answer.status)
    except (ValueError, KeyError, TypeError):
        kind, details = _by_status(answer.status), {}
        message = f"{url} answered {answer.status} {answer.reason}; is that a loopline server?"
    request_id = answer.headers.get("x-request-id")
    if request_id:
        details["request_id"] = request_id
    pause = answer.headers.get("retry-after", "")
    if pause.isdecimal():
        details["retry_after_seconds"] = int(pause)
    return kind(message, **details)


def _classes() -> dict[str, type[LooplineError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LooplineError)]
    return {kind.code: kind for kind in found}


def _by_status(status: int) -> type[LooplineError]:
    own = {kind.status: kind for kind in reversed(_classes().values()) if "status" in vars(kind)}
    return own.get(status, InvalidInput if status < 500 else LooplineError)
