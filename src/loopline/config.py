"""Settings of an installation: one table, one frozen value, and the only reader of the process environment.

A setting comes from, in this order: the caller (a command-line option), the environment variable ``LOOPLINE_<NAME>``,
``settings.toml`` in the data directory, the table's default.
"""

import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from loopline.errors import InvalidInput

MAX_SOCKET_DIR_BYTES = 60  # a Unix socket's path holds 108 bytes; the rest is for names below the directory
MAX_LOOP_TOML_BYTES = 1 << 16


class Setting(NamedTuple):
    """One row of the table: what a setting is called, its type, its default and what it does."""

    name: str
    kind: type
    default: Any
    help: str


SETTINGS = (
    Setting("dir", str, "~/.loopline", "the data directory"),
    Setting("host", str, "127.0.0.1", "the address that the public port binds to"),
    Setting("port", int, 8600, "the public port; 0 takes a free one"),
    Setting("gateways", int, 1, "gateway processes that share the public port"),
    Setting("database_url", str, "", "SQLAlchemy URL; empty is SQLite in the data directory"),
    Setting("max_jobs", int, 4, "jobs that may run at the same time on this host"),
    Setting("allowed_hosts", str, "", "comma-separated Host names beside the bound address and localhost"),
    Setting("tls", str, "", "local: the public port speaks TLS with a certificate made for this machine"),
    Setting("tls_certificate", str, "", "path of the PEM certificate (chain) that the public port speaks TLS with"),
    Setting("tls_key", str, "", "path of the PEM private key of tls_certificate"),
    Setting("behind_proxy", str, "", "trusted: a proxy in front speaks TLS, so that the public port need not"),
    Setting("connections", int, 20000, "connections that one gateway takes at the same time"),
    Setting("address_connections", int, 2000, "of those, how many from one address"),
    Setting("outbound_allow", str, "", "comma-separated host:port that webhooks may reach although they are private"),
    Setting("public_url", str, "", "what links in messages begin with; empty is the public port's own address"),
    Setting("smtp_url", str, "", "the server that sends e-mail: smtp://[USER:PASSWORD@]HOST[:PORT] or smtps://..."),
    Setting("smtp_from", str, "", "the address that e-mail comes from; empty is loopline@ the mail server's name"),
    Setting("job_memory_mb", int, 4096, "memory limit of a job that declares none"),
    Setting("job_disk_mb", int, 4096, "disk limit of a job that declares none"),
    Setting("job_log_mb", int, 16, "how much of a job's log is kept"),
    Setting("job_open_files", int, 1024, "open-file limit of a job that declares none"),
    Setting("default_image", str, "sagemaker-scikit-learn", "whose packages stand for an image that is not known"),
    Setting("max_body_mb", int, 6, "the largest prediction request"),
    Setting("async_body_mb", int, 32, "the largest body of an asynchronous request, at most 63"),
    Setting("async_queue", int, 1000, "asynchronous requests of one endpoint that may wait"),
    Setting("async_concurrency", int, 2, "asynchronous requests of one endpoint that are asked at the same time"),
    Setting("async_hours", int, 24, "how long an asynchronous request may wait, and its answer is kept"),
    Setting("log_days", int, 30, "how long the logs of ended jobs are kept"),
    Setting("capture_days", int, 7, "how long captured requests, the request log, are kept"),
    Setting("capture_mb", int, 2048, "how much of the request log is kept per gateway"),
    Setting("aws_account", str, "123456789012", "the account number in ARNs"),
    Setting("aws_region", str, "us-east-1", "the region in ARNs, and what `loopline env` prints"),
    Setting("aws_unsigned", str, "", "the role that unsigned AWS requests from this machine have; empty: none may"),
    Setting("aws_strict", int, 0, "1: AWS requests that break an enum, a pattern or a maximum are refused"),
    Setting("seed", str, "", "seeds ids and traffic choice, for tests that must repeat; empty is random"),
)


@dataclass(frozen=True)
class Settings:
    """Every setting, checked. ``dir`` and ``run_dir`` are absolute."""

    dir: Path
    host: str
    port: int
    gateways: int
    database_url: str
    max_jobs: int
    allowed_hosts: tuple[str, ...]
    tls: str
    tls_certificate: str
    tls_key: str
    behind_proxy: str
    connections: int
    address_connections: int
    outbound_allow: tuple[str, ...]
    public_url: str
    smtp_url: str
    smtp_from: str
    job_memory_mb: int
    job_disk_mb: int
    job_log_mb: int
    job_open_files: int
    default_image: str
    max_body_mb: int
    async_body_mb: int
    async_queue: int
    async_concurrency: int
    async_hours: int
    log_days: int
    capture_days: int
    capture_mb: int
    aws_account: str
    aws_region: str
    aws_unsigned: str
    aws_strict: int
    seed: str
    run_dir: Path

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{self.dir / 'loopline.db'}"

    @property
    def secure(self) -> bool:
        """Whether the public port speaks TLS."""
        return bool(self.tls or self.tls_certificate)

    @property
    def tls_dir(self) -> Path:
        """Where the certificates of ``tls = local`` are; ``ca.pem`` is what clients have to trust."""
        return self.dir / "tls"

    @property
    def url(self) -> str:
        """The public port, as a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def command_line(self) -> list[str]:
        """The options that make another process load the same settings for this data directory."""
        return ["--dir", str(self.dir)]


def _convert(setting: Setting, raw: Any, origin: str) -> Any:
    if setting.kind is int:
        try:
            value = int(raw)
        except (TypeError, ValueError):
            raise InvalidInput(f"{origin}: {setting.name} must be a whole number, not {raw!r}") from None
        if value < 0:
            raise InvalidInput(f"{origin}: {setting.name} must not be negative, not {value}")
        return value
    if not isinstance(raw, str):
        raise InvalidInput(f"{origin}: {setting.name} must be a string, not {type(raw).__name__}")
    return raw


def run_dir_for(directory: Path) -> Path:
    """Where sockets and process state go: ``DIR/run``, or a short private folder when that path is too long."""
    inside = directory / "run"
    if len(os.fsencode(inside)) <= MAX_SOCKET_DIR_BYTES:
        return inside
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    return Path("/tmp") / f"loopline-{os.getuid()}-{digest}"  # noqa: S108 - made 0700 and its owner is checked


def load(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """The settings in force; ``given`` holds what the caller was told and ``None`` for what it was not.

    Raises ``InvalidInput`` naming the setting and where its value came from.
    """
    environ = os.environ if environ is None else environ
    raw_dir = given.get("dir") or environ.get("LOOPLINE_DIR") or SETTINGS[0].default
    directory = Path(raw_dir).expanduser().absolute()
    stored = _settings_file(directory / "settings.toml")
    values: dict[str, Any] = {}
    for setting in SETTINGS[1:]:
        variable = f"LOOPLINE_{setting.name.upper()}"
        if given.get(setting.name) is not None:
            values[setting.name] = _convert(setting, given[setting.name], f"--{setting.name.replace('_', '-')}")
        elif variable in environ:
            values[setting.name] = _convert(setting, environ[variable], variable)
        elif setting.name in stored:
            values[setting.name] = _convert(setting, stored[setting.name], "settings.toml")
        else:
            values[setting.name] = setting.default
    for name in ("allowed_hosts", "outbound_allow"):
        values[name] = tuple(part.strip() for part in values[name].split(",") if part.strip())
    _check_tls(values)
    _check_mail(values)
    _check_aws(values)
    if values["port"] > 65535:
        raise InvalidInput(f"port must be at most 65535, not {values['port']}")
    return Settings(dir=directory, run_dir=run_dir_for(directory), **values)


def _check_tls(values: Mapping[str, Any]) -> None:
    if values["tls"] not in ("", "local"):
        raise InvalidInput(
            f"tls must be local or empty, not {values['tls']!r}; a certificate of yours: tls_certificate"
        )
    if bool(values["tls_certificate"]) != bool(values["tls_key"]):
        raise InvalidInput("tls_certificate and tls_key go together: set both, or neither")
    if values["tls"] and values["tls_certificate"]:
        raise InvalidInput("tls = local makes a certificate; leave it out where tls_certificate names one")
    if values["behind_proxy"] not in ("", "trusted"):
        raise InvalidInput(f"behind_proxy must be trusted or empty, not {values['behind_proxy']!r}")


def _check_aws(values: Mapping[str, Any]) -> None:
    if not re.fullmatch("[0-9]{12}", values["aws_account"]):
        raise InvalidInput(f"aws_account must be 12 digits, not {values['aws_account']!r}")
    if not re.fullmatch("[a-z]{2}(-[a-z]+)+-[0-9]", values["aws_region"]):
        raise InvalidInput(f"aws_region must be a region such as us-east-1, not {values['aws_region']!r}")
    if values["aws_unsigned"] not in ("", "viewer", "editor", "approver", "admin"):
        raise InvalidInput(f"aws_unsigned must be a role or empty, not {values['aws_unsigned']!r}")
    if values["aws_unsigned"] and (not is_loopback(values["host"]) or values["behind_proxy"]):
        raise InvalidInput("aws_unsigned is for a port that this machine alone reaches: host = 127.0.0.1, no proxy")


class MailServer(NamedTuple):
    """A mail server as the setting ``smtp_url`` names it; ``scheme``: smtp (TLS where it is offered) or smtps."""

    scheme: str
    host: str
    port: int
    user: str
    password: str


_MAIL_PORTS = {"smtp": 587, "smtps": 465}


def mail_server(url: str) -> MailServer:
    """``smtp://[USER:PASSWORD@]HOST[:PORT]`` or ``smtps://...`` taken apart; raises ``InvalidInput`` without repeating
    the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput("smtp_url: the host or port cannot be read") from None
    if parts.scheme not in _MAIL_PORTS or not parts.hostname or parts.path not in ("", "/"):
        raise InvalidInput("smtp_url must be smtp://[USER:PASSWORD@]HOST[:PORT] or smtps://...")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return MailServer(parts.scheme, parts.hostname, port or _MAIL_PORTS[parts.scheme], user, password)


def _check_mail(values: Mapping[str, Any]) -> None:
    if values["smtp_url"]:
        mail_server(values["smtp_url"])
    sender = values["smtp_from"]
    if sender and not re.fullmatch(r"[!-~]+@[A-Za-z0-9.-]+", sender):
        raise InvalidInput(f"smtp_from must be an e-mail address, not {sender!r}")


def check_exposure(settings: Settings, address: str) -> None:
    """Raises ``InvalidInput`` for an address that other machines reach, unless what is sent there is encrypted."""
    if is_loopback(address) or settings.secure or settings.behind_proxy:
        return
    raise InvalidInput(
        f"other machines can reach {address}, and keys and data would pass in the clear: add --tls local, or "
        "--tls-certificate FILE --tls-key FILE; where a proxy in front speaks TLS and nobody can pass it by, set "
        'behind_proxy = "trusted" in settings.toml'
    )


def is_loopback(address: str) -> bool:
    """Whether an IP address, or the name ``localhost``, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _settings_file(path: Path) -> dict[str, Any]:
    try:
        stored = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from None
    unknown = sorted(set(stored) - {setting.name for setting in SETTINGS[1:]})
    if unknown:
        raise InvalidInput(
            f"{path}: unknown setting {unknown[0]!r}; known: {', '.join(f.name for f in fields(Settings))}"
        )
    return stored


def client_defaults(environ: Mapping[str, str] | None = None) -> tuple[str | None, str | None]:
    """URL and API key that a client takes when it is told none: ``LOOPLINE_URL`` and ``LOOPLINE_KEY``."""
    environ = os.environ if environ is None else environ
    return environ.get("LOOPLINE_URL"), environ.get("LOOPLINE_KEY")


def client_ca(environ: Mapping[str, str] | None = None) -> str | None:
    """The file of certificates that a client trusts beside the system's: ``LOOPLINE_CA``."""
    environ = os.environ if environ is None else environ
    return environ.get("LOOPLINE_CA")


def search_path(environ: Mapping[str, str] | None = None) -> str:
    """``PATH`` for programs that loopline starts (git, uv)."""
    environ = os.environ if environ is None else environ
    return environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")


_CHILD = re.compile(r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|SSL_CERT_\w+")
_PACKAGES = re.compile(r"(UV|PIP|XDG)_\w+|REQUESTS_CA_BUNDLE|\w+_(PROXY|proxy)")


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What user code may see of this process's environment: no key, token or address of anybody."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if _CHILD.fullmatch(name)}


def package_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What loopline's own processes see: the above, and where packages come from, which may hold credentials."""
    environ = os.environ if environ is None else environ
    return {name: value for name, value in environ.items() if _CHILD.fullmatch(name) or _PACKAGES.fullmatch(name)}
