"""The gateway: what a reverse proxy in front of it needs to know."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from loopline.config import Settings

PLAIN, SECURE = 8080, 8443


@click.group()
def gateway() -> None:
    """The public port."""


@gateway.command()
@click.option("--haproxy", is_flag=True, help="For HAProxy 2.4 or later.")
@click.option("--nginx", is_flag=True, help="A whole nginx.conf, for nginx 1.18 or later.")
@click.option("--port", type=int, help=f"The proxy's own port (default: {SECURE} with TLS, {PLAIN} without).")
@click.option("--tls-cert", metavar="FILE", help="A PEM file with certificate and key: the proxy ends TLS.")
@click.option("--passthrough", is_flag=True, help="Leave TLS to loopline (HAProxy only).")
@click.option("--dir", "directory", metavar="DIR", help="The data directory (default: ~/.loopline).")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def config(
    *,
    haproxy: bool,
    nginx: bool,
    port: int | None,
    tls_cert: str | None,
    passthrough: bool,
    directory: str | None,
    debug: bool,
) -> None:
    """Print a working configuration of HAProxy or nginx in front of this installation."""
    del debug  # read by ``root.run``
    from loopline.config import load
    from loopline.domain import proxies
    from loopline.errors import InvalidInput

    if haproxy == nginx:
        raise click.UsageError("say which: --haproxy or --nginx")
    if passthrough and (nginx or tls_cert):
        raise click.UsageError("--passthrough goes with --haproxy, and without --tls-cert")

    settings = load(dir=directory)
    secure = _speaks_tls(settings)
    if secure and not passthrough:
        raise InvalidInput("loopline speaks TLS itself here (tls): add --passthrough, or leave TLS to the proxy alone")
    if passthrough and not secure:
        raise InvalidInput("there is no TLS to pass through: set tls or tls_certificate, or give the proxy --tls-cert")
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound
    host = everywhere.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
    proxy = proxies.Proxy(
        host=host,
        port=_bound_port(settings),
        listen=port or (SECURE if tls_cert or passthrough else PLAIN),
        names=tuple(name.rpartition(":")[0] or name for name in settings.allowed_hosts),
        certificate=None if tls_cert is None else str(Path(tls_cert).absolute()),
        max_body_mb=settings.max_body_mb,
    )
    render = proxies.nginx if nginx else proxies.haproxy_passthrough if passthrough else proxies.haproxy
    click.echo(render(proxy), nl=False)


def _bound_port(settings: "Settings") -> int:
    """The port in use, where it was a free one that was taken."""
    from loopline.errors import InvalidInput

    try:
        return int(json.loads((settings.run_dir / "supervisor.json").read_text())["port"])
    except (OSError, ValueError, LookupError, TypeError):
        if not settings.port:
            raise InvalidInput("port is 0 and loopline is not running: start it, or set a port") from None
        return settings.port


def _speaks_tls(settings: "Settings") -> bool:
    """Whether what runs speaks TLS, for options of ``loopline up`` stand in no file; else what is set."""
    try:
        running = settings.run_dir.joinpath("supervisor.json").exists()
        url = json.loads((settings.dir / "client.json").read_text())["url"] if running else ""
    except (OSError, ValueError, LookupError, TypeError):
        url = ""
    return str(url).startswith("https:") if url else settings.secure
