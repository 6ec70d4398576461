"""Run by Alembic, which puts ``context`` in place first: migrates over the connection that ``upgrade`` hands in."""

from alembic import context

from loopline.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
