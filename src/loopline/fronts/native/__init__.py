"""loopline's own REST, one generic front over the use cases' signatures; permission is part of a route."""
