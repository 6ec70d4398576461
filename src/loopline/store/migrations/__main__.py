"""``python -m loopline.store.migrations``: write the initial revision anew from ``schema``.

For developers, and only until the first release: databases made before keep the schema that they have.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations.ops import CreateTableOp

from loopline.store.migrations import DIRECTORY, HEAD, append_only
from loopline.store.schema import metadata

INITIAL = DIRECTORY / "versions" / "r0001_initial.py"

_HEADING = '''"""The schema of the first release. Written by ``python -m loopline.store.migrations``: do not edit."""

import sqlalchemy as sa
from alembic import op

from loopline.store.migrations.append_only import protect

revision = "0001"
down_revision = None


def upgrade() -> None:  # noqa: PLR0915 - one statement for each table and index
'''


def render() -> str:
    """The source of the initial revision, before it is formatted: tables by name, then the triggers."""
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        operations = produce_migrations(context, metadata).upgrade_ops
        assert operations is not None
        operations.ops.sort(key=_sort_key)
        body = render_python_code(operations, migration_context=context)
    lines = [f"    {line.strip()}\n" for line in body.splitlines() if not line.lstrip().startswith("#")]
    lines += [f'    protect(op.get_bind(), "{name}")\n' for name in append_only.TABLES]
    return _HEADING + "".join(lines)


def _sort_key(operation: Any) -> tuple[str, bool, str]:
    """By table; its indexes after it."""
    return operation.table_name, not isinstance(operation, CreateTableOp), getattr(operation, "index_name", "")


def main() -> None:
    """Write the file and format it."""
    if HEAD != "0001":
        sys.exit("the initial revision has been released: add a new one in its place")
    INITIAL.write_text(render())
    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "format", "--quiet", INITIAL], check=True)


if __name__ == "__main__":
    main()
