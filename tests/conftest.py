"""What several folders of tests need."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from loopline.testing import postgres

# That a machine is busy is no mistake of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a private PostgreSQL with ``%s`` for the database's name; skips, visibly, where it is not installed."""
    with postgres.server() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed: /usr/lib/postgresql/*/bin/initdb")
        yield url
