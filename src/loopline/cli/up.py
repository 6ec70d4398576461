"""Starts loopline on this machine."""

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--dir", "directory", metavar="DIR", help="The data directory (default: ~/.loopline).")
@click.option("--host", help="The address to listen on (default: 127.0.0.1).")
@click.option("--port", type=int, help="The port (default: 8600); 0 takes a free one.")
@click.option("--tls", type=click.Choice(["local"]), help="Speak TLS with a certificate made for this machine.")
@click.option("--tls-certificate", metavar="FILE", help="Speak TLS with this certificate (PEM, with its chain).")
@click.option("--tls-key", metavar="FILE", help="The private key of that certificate.")
@click.option("--gateways", type=int, help="Gateway processes.")
@click.option("--max-jobs", type=int, help="Jobs that run at the same time.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def up(directory: str | None, debug: bool, **given: Any) -> int:
    """Start loopline on this machine, until Ctrl-C."""
    del debug  # read by ``root.run``
    from loopline import config, supervisor

    settings = config.load(dir=directory, **given)

    def ready(host: str, port: int) -> None:
        shown = "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host  # noqa: S104 - only shown
        click.echo(f"loopline is up at {'https' if settings.secure else 'http'}://{shown}:{port}")
        if settings.tls:
            click.echo(f"  clients elsewhere trust it by {settings.tls_dir / 'ca.pem'} (LOOPLINE_CA)")
        click.echo(f"  data: {settings.dir}")
        key = _first_key(settings.dir / "admin-token")
        if key:
            click.echo(f"  admin key, shown this once: {key}")
            click.echo("  commands on this machine find it by themselves; the page asks for it")
        where = "" if directory is None else f"LOOPLINE_DIR={settings.dir} "
        click.echo(f"  next: {where}loopline init my-project && cd my-project && {where}loopline run --wait")
        click.echo("  stop: Ctrl-C")

    return supervisor.run(settings, on_ready=ready, say=lambda line: click.echo(line, err=True))


def _first_key(path: Path) -> str | None:
    """The key that control left to be shown once; the file is removed."""
    try:
        key = path.read_text().strip()
    except FileNotFoundError:
        return None
    path.unlink()
    return key
