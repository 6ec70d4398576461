"""What several folders of tests need."""

from collections.abc import Iterator

import pytest

from loopline.testing import postgres


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a private PostgreSQL with ``%s`` for the database's name; skips, visibly, where it is not installed."""
    with postgres.server() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed: /usr/lib/postgresql/*/bin/initdb")
        yield url
