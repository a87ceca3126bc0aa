"""Accounts of third parties that are linked to users, and erasures

Revision ID: 0007
Revises: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_index, create_table

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INNODB: Any = {
    f"{server}_{key}": value
    for server in ("mysql", "mariadb")
    for key, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def ascii_text(length: int) -> sa.String:
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def upgrade() -> None:
    create_table(
        "linked_identity",
        sa.Column("digest", sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb"), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("provider", ascii_text(32), nullable=False),
        sa.Column("linked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        sa.UniqueConstraint("user_id", "provider", name=op.f("uq_linked_identity_user_id_provider")),
        **INNODB,
    )

    create_table(
        "erasure",
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("pass_at", sa.BigInteger(), nullable=False),
        sa.Column("cursor", ascii_text(36), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("user_id"),
        **INNODB,
    )
    create_index(op.f("ix_erasure_due_at"), "erasure", ["due_at"])


def downgrade() -> None:
    op.drop_table("erasure")
    op.drop_table("linked_identity")
