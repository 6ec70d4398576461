"""Configurations of HAProxy and nginx in front of an installation, from values that have been checked.

What both do: watch ``/healthz``, keep connections open on both sides, wait for predictions as long as the platform
does, pass on who the client is (``X-Forwarded-For``, ``X-Forwarded-Proto``) and the client's ``Host``, log the
platform's request id, and never send a request a second time once a gateway may have seen it.
"""

import re
from dataclasses import dataclass

from loopline.errors import InvalidInput

CONNECT_SECONDS = 5
HEADER_SECONDS = 10
IDLE_SECONDS = 60  # less than the gateway keeps its own side open, so that it is the proxy that closes
ANSWER_SECONDS = 3660  # a request may take an hour (endpoint timeout_seconds)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:]{2,39}\]")
_PATH = re.compile(r"/[A-Za-z0-9._/@+-]{1,1000}")


@dataclass(frozen=True)
class Proxy:
    """``host`` and ``port``: where the platform listens. ``listen``: the proxy's own port. ``names``: the host names
    that it answers for. ``certificate``: a PEM file with certificate and key; None speaks plain HTTP. ``max_body_mb``:
    the largest prediction request; what else is sent to the platform has no limit here."""

    host: str
    port: int
    listen: int
    names: tuple[str, ...]
    certificate: str | None
    max_body_mb: int

    def __post_init__(self) -> None:
        """Raises ``InvalidInput`` for anything that would mean something else in a configuration file."""
        for name in (self.host, *self.names):
            if not _HOST.fullmatch(name):
                raise InvalidInput(f"{name!r} is not a host name that a proxy's configuration can hold")
        for port in (self.port, self.listen):
            if not 1 <= port <= 65535:
                raise InvalidInput(f"a port lies between 1 and 65535, not {port}")
        if self.certificate is not None and (not _PATH.fullmatch(self.certificate) or ".." in self.certificate):
            raise InvalidInput("the certificate's path must be absolute, of letters, digits and . _ / @ + - only")

    @property
    def scheme(self) -> str:
        """What clients speak."""
        return "http" if self.certificate is None else "https"


_HAPROXY = """\
# HAProxy in front of loopline. Made by: loopline gateway config --haproxy
global
    log stdout format raw local0 info

defaults
    mode http
    log global
    option httplog
    option dontlognull
    option redispatch
    retries 3
    # A request that a gateway may have seen is not sent again: it may be what killed a model server.
    retry-on conn-failure
    timeout connect {connect}s
    timeout queue {connect}s
    timeout check {connect}s
    timeout client {idle}s
    timeout server {answer}s
    timeout http-request {header}s
    timeout http-keep-alive {idle}s

frontend loopline
    bind :{listen}{tls}
    option forwardfor
    http-request set-header X-Forwarded-Proto {scheme}
{names}    http-request deny deny_status 413 if {{ path_beg /endpoints/ }} {{ req.body_size gt {max_body} }}
    capture response header X-Request-Id len 40
    default_backend gateways

backend gateways
    option httpchk
    http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host localhost
    http-check expect status 200
    http-reuse safe
    server loopline {host}:{port} check inter 2s fall 5 rise 1
"""

_HAPROXY_THROUGH = """\
# HAProxy in front of loopline, which ends TLS itself. Made by: loopline gateway config --haproxy --passthrough
global
    log stdout format raw local0 info

defaults
    mode tcp
    log global
    option tcplog
    retries 3
    timeout connect {connect}s
    timeout client {answer}s
    timeout server {answer}s

frontend loopline
    bind :{listen}
    default_backend gateways

backend gateways
    server loopline {host}:{port} check inter 2s fall 5 rise 1
"""

_NGINX = """\
# nginx in front of loopline. Made by: loopline gateway config --nginx
# A whole nginx.conf; `http {{ ... }}` may also go into one that you have.
worker_processes auto;
events {{
    worker_connections 4096;
}}
http {{
    log_format loopline '$remote_addr "$request" $status $request_time $upstream_http_x_request_id';
    access_log /dev/stdout loopline;
    upstream loopline {{
        # One address: nginx has nowhere else to go, and must not take it out of use when a gateway restarts.
        server {host}:{port} max_fails=0;
        keepalive 64;
        keepalive_timeout {idle}s;
    }}
    server {{
        listen {listen}{tls};
{names}        client_header_timeout {header}s;
        keepalive_timeout {idle}s;
        keepalive_requests 1000000;
        client_max_body_size 0;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto {scheme};
        proxy_connect_timeout {connect}s;
        proxy_read_timeout {answer}s;
        proxy_send_timeout {answer}s;
        # A request that a gateway may have seen is not sent again: it may be what killed a model server.
        proxy_next_upstream off;
        location / {{
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_pass http://loopline;
        }}
        location ~ ^/endpoints/[^/]+/invocations$ {{
            client_max_body_size {max_body_mb}m;
            client_body_buffer_size 1m;
            proxy_pass http://loopline;
        }}
    }}
}}
"""


def _numbers(proxy: Proxy) -> dict[str, object]:
    return {
        "host": proxy.host,
        "port": proxy.port,
        "listen": proxy.listen,
        "scheme": proxy.scheme,
        "max_body_mb": proxy.max_body_mb,
        "max_body": proxy.max_body_mb << 20,
        "connect": CONNECT_SECONDS,
        "header": HEADER_SECONDS,
        "idle": IDLE_SECONDS,
        "answer": ANSWER_SECONDS,
    }


def haproxy(proxy: Proxy) -> str:
    """A configuration for HAProxy 2.4 or later."""
    names = ""
    if proxy.names:
        known = " ".join(name for bare in proxy.names for name in (bare, f"{bare}:{proxy.listen}"))
        names = f"    http-request deny deny_status 421 unless {{ hdr(host) -i {known} }}\n"
    tls = "" if proxy.certificate is None else f" ssl crt {proxy.certificate} alpn http/1.1"
    return _HAPROXY.format(tls=tls, names=names, **_numbers(proxy))


def haproxy_passthrough(proxy: Proxy) -> str:
    """A configuration for HAProxy that passes TLS through to the platform; clients' addresses are not passed on."""
    return _HAPROXY_THROUGH.format(**_numbers(proxy))


def nginx(proxy: Proxy) -> str:
    """A whole ``nginx.conf`` for nginx 1.18 or later."""
    names = f"        server_name {' '.join(proxy.names)};\n" if proxy.names else ""
    tls = ""
    if proxy.certificate is not None:
        tls = " ssl"
        names += f"        ssl_certificate {proxy.certificate};\n        ssl_certificate_key {proxy.certificate};\n"
        names += "        ssl_protocols TLSv1.2 TLSv1.3;\n"
    return _NGINX.format(tls=tls, names=names, **_numbers(proxy))
