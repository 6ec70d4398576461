"""``python -m loopline.store.migrations``: write the newest revision anew: what ``schema`` has beyond the one before.

For developers, and only until the release that it comes with: databases made before keep the schema that they have.
"""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import CreateTableOp

from loopline.store.migrations import DIRECTORY, HEAD
from loopline.store.schema import metadata

BEFORE = f"{int(HEAD) - 1:04}"
NEWEST = DIRECTORY / "versions" / "r0002_second.py"

_HEADING = f"""\"\"\"The schema beyond {BEFORE}. Written by ``python -m loopline.store.migrations``: do not edit.\"\"\"

import sqlalchemy as sa
from alembic import op

revision = "{HEAD}"
down_revision = "{BEFORE}"


def upgrade() -> None:  # noqa: PLR0915 - one statement for each table and index
"""


def render() -> str:
    """The source of the newest revision, before it is formatted: tables by name.

    A table that changes is copied, so that its DDL is the one that a new database gets.
    """
    config = Config()
    config.set_main_option("script_location", str(DIRECTORY))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, BEFORE)
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        operations = produce_migrations(context, metadata).upgrade_ops
        assert operations is not None
        operations.ops.sort(key=_sort_key)
        body = render_python_code(operations, migration_context=context, render_as_batch=True)
    lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return _HEADING + "".join(f"    {line}\n" for line in _copying(lines))


def _copying(lines: list[str]) -> Iterator[str]:
    """Tables that get columns are copied; an index needs no copy."""
    for number, line in enumerate(lines):
        grows = line.endswith("as batch_op:") and any(
            each.lstrip().startswith("batch_op.add_column")
            for each in itertools.takewhile(_is_inner, lines[number + 1 :])
        )
        yield line.replace(", schema=None)", ', recreate="always")' if grows else ")")


def _is_inner(line: str) -> bool:
    return line.startswith(" " * 4)


def _sort_key(operation: Any) -> tuple[str, bool, str]:
    """By table; its indexes after it."""
    return operation.table_name, not isinstance(operation, CreateTableOp), getattr(operation, "index_name", "")


def main() -> None:
    """Write the file and format it."""
    NEWEST.write_text(render())
    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "format", "--quiet", NEWEST], check=True)


if __name__ == "__main__":
    main()
