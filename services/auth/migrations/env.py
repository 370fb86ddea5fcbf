"""Runs revisions on the connection that migrate.py passes in; it opens none and reads no file."""

from alembic import context

from services.auth.models import metadata

# The caller holds a transaction and, in it, the lock that keeps other replicas
# out: all revisions apply together or not at all.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
