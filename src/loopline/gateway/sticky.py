"""Sticky routing: requests with the same key are answered by the same variant, on every gateway and after restarts.

Weighted rendezvous hashing: each variant draws a number for the key, an exponential with the variant's weight as its
rate, and the smallest wins (D. Thaler and C. Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998; the weights
as in C. Schindelhauer and G. Schomaker, SPAA 2005). A key wins with probability weight / sum of weights, and a change
of one weight moves keys only to the variant that grew, or away from the one that shrank: a canary keeps its users.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

_RANGE = float(1 << 64)


class Weighted(Protocol):
    """What is chosen from."""

    name: str
    weight: float


Chosen = TypeVar("Chosen", bound=Weighted)


def choose(variants: Sequence[Chosen], key: bytes) -> Chosen:
    """The variant of a key; ``variants`` have weights above 0, in any order."""
    return min(variants, key=lambda variant: _draw(variant.name, key) / variant.weight)


def _draw(name: str, key: bytes) -> float:
    """An exponentially distributed number that depends on nothing but its arguments."""
    digest = hashlib.sha256(b"%b\0%b" % (name.encode(), key)).digest()
    return -math.log((int.from_bytes(digest[:8]) + 1) / (_RANGE + 1))
