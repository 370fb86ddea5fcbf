"""Alembic's revisions of the auth database; each one can be undone."""
