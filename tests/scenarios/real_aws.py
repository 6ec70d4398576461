"""Run a script as it stands against the addresses of AWS, of which none is reached: `python real_aws.py SCRIPT ...`.

Each request that botocore would send is held to the service's model (enums, patterns, minima and maxima as well), and
to its address, which must be one of AWS's. Then it is signed again and goes to the installation at REAL_AWS_STANDS_IN
instead, whose answer the script gets. No other connection can be made. REAL_AWS_SEEN gets a line of JSON a request.
"""

import json
import os
import re
import runpy
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import botocore.session
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session

STANDS_IN = os.environ["REAL_AWS_STANDS_IN"]
SEEN = Path(os.environ["REAL_AWS_SEEN"])
# What the models' expressions know and Python's do not, each as its nearest class.
CLASSES = {
    "ASCII": r"\x00-\x7f",
    "Alnum": r"a-zA-Z0-9",
    "L": r"\w",
    "M": r"\u0300-\u036f",
    "N": r"\d",
    "P": r"!-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\uff01-\uff0f",
    "Print": r"\x20-\x7e",
    "S": r"$+<=>^`|~\u00a2-\u00a9\u2190-\u21ff",
    "Z": r"\s",
    "Zs": r"\x20",
}
BUCKET_HOST = re.compile(r"(.+)\.s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_problems: dict[str, list[str]] = {}


def wrong_with(shape, value, place):
    """What the service's model forbids about a value, in words."""
    facts, kind = shape.metadata, shape.type_name
    found = []
    if kind == "structure":
        found += [f"{place}: unknown {name}" for name in set(value) - set(shape.members)]
        found += [f"{place}: missing {name}" for name in set(shape.required_members) - set(value)]
        for name in set(value) & set(shape.members):
            found += wrong_with(shape.members[name], value[name], f"{place}.{name}")
    elif kind == "list":
        for item in value:
            found += wrong_with(shape.member, item, f"{place}[]")
    elif kind == "map":
        for key, item in value.items():
            found += wrong_with(shape.key, key, f"{place} key") + wrong_with(shape.value, item, f"{place}.{key}")
    if kind == "string" and facts.get("enum") and value not in facts["enum"]:
        found.append(f"{place}: {value!r} is none of {facts['enum']}")
    if kind == "string" and facts.get("pattern") and not re.search(rf"\A(?:{_python(facts['pattern'])})\Z", value):
        found.append(f"{place}: {value!r} is not like {facts['pattern']}")
    size = len(value) if kind in ("string", "list", "map") else value if kind in ("integer", "long", "float") else None
    if size is not None and not facts.get("min", size) <= size <= facts.get("max", size):
        found.append(f"{place}: {size} is not between {facts.get('min')} and {facts.get('max')}")
    return found


def _python(pattern):
    """A model's expression in Python's words; an end may be repeated there, and is called ``\\z``."""

    def ours(found):
        before = ended[: found.start()]
        inside = before.count("[") > before.count("]")
        return CLASSES[found[1]] if inside else f"[{CLASSES[found[1]]}]"

    ended = re.sub(r"\$\{\d+,\d+\}", "$", pattern).replace(r"\z", r"\Z")
    return re.sub(r"\\p\{(\w+)\}", ours, ended)


def hold_to_the_model(params, model, **_rest):
    """Before a request is built."""
    _problems[f"{model.service_model.service_id.hyphenize()}.{model.name}"] = (
        wrong_with(model.input_shape, params, model.name) if model.input_shape is not None else []
    )


def stand_in(request, event_name, **_rest):
    """In place of sending."""
    operation = event_name.removeprefix("before-send.")
    address = urlsplit(request.url)
    seen = {"operation": operation, "host": address.netloc, "problems": _problems.pop(operation, ["was not validated"])}
    with SEEN.open("a") as file:
        file.write(json.dumps(seen) + "\n")
    headers = {name: _text(value) for name, value in request.headers.items()}
    scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/aws4_request", headers["Authorization"])
    path = address.path
    if bucket := BUCKET_HOST.fullmatch(address.netloc):
        path = f"/{bucket[1]}{path}"
    url = STANDS_IN + path + (f"?{address.query}" if address.query else "")
    dropped = ("authorization", "x-amz-date", "host")
    again = AWSRequest(
        request.method, url, {k: v for k, v in headers.items() if k.lower() not in dropped}, request.body
    )
    if "X-Amz-Trailer" in headers:
        again.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
    region, service = scope.groups()
    signer = S3SigV4Auth if service == "s3" else SigV4Auth
    signer(botocore.session.get_session().get_credentials(), service, region).add_auth(again)
    prepared = again.prepare()
    prepared.stream_output = request.stream_output
    return URLLib3Session().send(prepared)


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def only_the_stand_in(connect):
    """Connections of a socket that lead elsewhere fail, and are seen."""
    allowed = urlsplit(STANDS_IN)

    def guarded(self, address):
        if isinstance(address, tuple) and (address[0], address[1]) != (allowed.hostname, allowed.port):
            with SEEN.open("a") as file:
                file.write(json.dumps({"operation": "connect", "host": address[0], "problems": [str(address)]}) + "\n")
            raise ConnectionRefusedError(f"{address} would leave this machine")
        return connect(self, address)

    return guarded


def main():
    session = botocore.session.Session
    original = session.__init__

    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.register("before-parameter-build", hold_to_the_model)
        self.register("before-send", stand_in)

    session.__init__ = __init__
    socket.socket.connect = only_the_stand_in(socket.socket.connect)
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
