"""loopline's own REST, one generic front over the use cases' signatures; permission is part of a route."""

from loopline.fronts.native.app import build

__all__ = ["build"]
