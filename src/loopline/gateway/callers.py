"""How many connections there are from each address, and in all: one caller must not take what the others need."""

import ipaddress

SPARE_DESCRIPTORS = 256  # for model servers, control, the spool and connections that are about to be refused


class Callers:
    """``most``: connections in all; ``most_each``: from one address, 0 for no such limit."""

    def __init__(self, most: int, most_each: int) -> None:
        self.refused = 0  # so far
        self._most = most
        self._most_each = most_each
        self._count = 0
        self._of: dict[str, int] = {}

    def enter(self, address: str) -> str | None:
        """Count one more connection; what it is to ``leave`` with, or None where it has to go."""
        caller = _network(address)
        count = self._of.get(caller, 0)
        if self._count >= self._most or (self._most_each and count >= self._most_each):
            self.refused += 1
            return None
        self._count += 1
        self._of[caller] = count + 1
        return caller

    def leave(self, caller: str) -> None:
        """One connection less."""
        self._count -= 1
        left = self._of[caller] - 1
        if left:
            self._of[caller] = left
        else:
            del self._of[caller]


def _network(address: str) -> str:
    """The address; of IPv6 the network of 64 bits, which belongs to one caller as a whole."""
    if ":" not in address:
        return address
    found = ipaddress.IPv6Address(address.partition("%")[0])
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))
