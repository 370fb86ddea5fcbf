"""Roles, models and networks of clients; API keys as they are used; quotas, tenants, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("clients") as clients:
        clients.add_column(sa.Column("roles", sa.Text(), nullable=False, server_default=""))
        # Clients of before could ask every model, and still can.
        clients.add_column(sa.Column("models", sa.Text(), nullable=False, server_default="*"))
        clients.add_column(sa.Column("networks", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_clients_tenant", "clients", ["tenant"])
    # No key was ever issued: nothing is lost.
    op.drop_table("api_keys")
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("scopes", sa.String(500), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("secret_mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_by", sa.String(63), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name="fk_api_keys_client_id"),
    )
    op.create_index("ix_api_keys_client_id", "api_keys", ["client_id"])
    op.create_index("ix_api_keys_revoked_at", "api_keys", ["revoked_at"])
    op.create_table(
        "roles",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("scopes", sa.String(500), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_roles"),
    )
    op.create_table(
        "quotas",
        sa.Column("quota_id", sa.String(300), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("burst", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("quota_id", name="pk_quotas"),
    )
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("audit_detail", sa.String(16), nullable=False),
        sa.Column("cipher", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "sealed_secrets",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_sealed_secrets"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("sequence", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("action", sa.String(63), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_time", "audit_entries", ["time"])
    op.create_index("ix_audit_entries_client_id", "audit_entries", ["client_id"])
    op.create_index("ix_audit_entries_tenant", "audit_entries", ["tenant"])


def downgrade() -> None:
    for table in ("audit_entries", "sealed_secrets", "tenants", "quotas", "roles", "api_keys"):
        op.drop_table(table)
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(63), nullable=False),
        sa.Column("client_id", sa.String(63), nullable=False),
        sa.Column("scopes", sa.String(500), nullable=False),
        sa.Column("secret_mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name="fk_api_keys_client_id"),
    )
    op.create_index("ix_api_keys_client_id", "api_keys", ["client_id"])
    op.drop_index("ix_clients_tenant", "clients")
    with op.batch_alter_table("clients") as clients:
        for column in ("roles", "models", "networks"):
            clients.drop_column(column)
