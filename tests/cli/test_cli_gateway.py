"""``loopline gateway config`` goes by the settings of the data directory, and refuses what would not work."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from loopline.cli.root import run


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("LOOPLINE_DIR", str(tmp_path))

    def call(*argv: str, **settings: Any) -> tuple[int, str]:
        lines = [f"{name} = {value!r}\n".replace("'", '"') for name, value in settings.items()]
        (tmp_path / "settings.toml").write_text("".join(lines))
        code = run(["gateway", "config", *argv])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def test_the_settings_stand_in_the_configuration(config: Any) -> None:
    code, text = config("--haproxy", "--port", "9000", port=8700, allowed_hosts="ml.example", max_body_mb=3)
    assert code == 0
    assert "bind :9000\n" in text and "server loopline 127.0.0.1:8700 check" in text
    assert "hdr(host) -i ml.example ml.example:9000" in text and "gt 3145728" in text
    code, text = config("--nginx", "--tls-cert", "/etc/ssl/ml.pem", port=8700, host="0.0.0.0", behind_proxy="trusted")
    assert code == 0
    assert "listen 8443 ssl;" in text and "ssl_certificate /etc/ssl/ml.pem;" in text
    assert "server 127.0.0.1:8700 max_fails=0;" in text and "X-Forwarded-Proto https" in text


@pytest.mark.parametrize(
    ("argv", "settings", "says"),
    [
        ((), {}, "--haproxy or --nginx"),
        (("--nginx", "--passthrough"), {}, "goes with --haproxy"),
        (("--haproxy", "--passthrough"), {}, "no TLS to pass through"),
        (("--haproxy",), {"tls": "local"}, "speaks TLS itself"),
        (("--haproxy",), {"port": 0}, "is not running"),
        (("--haproxy",), {"allowed_hosts": "a b"}, "not a host name"),
        (("--nginx", "--tls-cert", "/x;y.pem"), {}, "certificate's path"),
    ],
    ids=str,
)
def test_what_would_not_work_is_refused(config: Any, argv: tuple[str, ...], settings: Any, says: str) -> None:
    code, text = config(*argv, **settings)
    assert code == 2 and says in text


def test_tls_of_the_platform_is_passed_through(config: Any) -> None:
    code, text = config("--haproxy", "--passthrough", tls="local")
    assert code == 0 and "mode tcp" in text and "bind :8443" in text


def test_what_runs_counts_more_than_what_is_set(config: Any) -> None:
    with tempfile.TemporaryDirectory() as name:  # short, so that sockets and state stay inside
        folder = Path(name)
        (folder / "run").mkdir()
        (folder / "run" / "supervisor.json").write_text('{"port": 8701}')  # loopline up --port 8701 --tls local
        (folder / "client.json").write_text('{"url": "https://127.0.0.1:8701", "key": "lk_"}')
        code, text = config("--nginx", "--dir", name)
        assert code == 2 and "speaks TLS itself" in text
        code, text = config("--haproxy", "--passthrough", "--dir", name)
        assert code == 0 and "server loopline 127.0.0.1:8701" in text
