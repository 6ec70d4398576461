"""Which addresses loopline may send to on behalf of somebody: public ones, unless the administrator says otherwise."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence

from loopline.errors import InvalidInput, Timeout, Unavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")


def resolve(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives for a name, in its order; raises ``OSError``."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def resolve_within(resolver: Resolver, host: str, port: int, seconds: float) -> list[str]:
    """What ``resolver`` says, or ``Timeout``: the system's resolver has no deadline of its own.

    Raises ``Unavailable`` when the name has no address.
    """
    found: list[str] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(resolver(host, port))
        except (OSError, UnicodeError) as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if thread.is_alive():
        raise Timeout(f"the name {host!r} was not resolved within {seconds:.1f} s")
    if failed or not found:
        raise Unavailable(f"the name {host!r} has no address: {failed[0] if failed else 'the answer is empty'}")
    return found


def is_public(text: str) -> bool:
    """Whether this address is one of the open internet, looking through every form that wraps an IPv4 address."""
    try:
        address: Address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address in _NAT64_LOCAL:
            return False
        inner = _wrapped(address)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a mapped, 6to4, Teredo or NAT64 address."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def normalise_allowed(entries: Sequence[str]) -> frozenset[str]:
    """The administrator's ``host:port`` entries in one spelling; raises ``InvalidInput`` for one without a port."""
    allowed = set()
    for entry in entries:
        host, colon, port = entry.strip().rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidInput(f"outbound_allow: {entry!r} must be host:port, such as 127.0.0.1:9000")
        allowed.add(f"{host.strip('[]').lower().rstrip('.')}:{int(port)}")
    return frozenset(allowed)


def check_addresses(host: str, port: int, found: Sequence[str], allowed: frozenset[str]) -> None:
    """Raise ``InvalidInput``, naming the setting, unless every address is public or host:port is allowed.

    One private address among public ones refuses all of them: otherwise the choice between them would be the
    attacker's.
    """
    if f"{host}:{port}" in allowed:
        return
    private = [address for address in found if not is_public(address)]
    if private:
        raise InvalidInput(
            f"{host}:{port} is the private or reserved address {private[0]}, which loopline does not send to; an "
            f"administrator may allow it with the setting outbound_allow = {host}:{port}"
        )
