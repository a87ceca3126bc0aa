"""What streams will do by themselves

Revision ID: 0002
Revises: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_index, create_table

revision = "0002"
down_revision = "0001"
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


def json_bytes() -> sa.LargeBinary:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "reminder",
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("stream", ascii_text(64), nullable=False),
        sa.Column("name", ascii_text(64), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("fence_offset", sa.BigInteger(), nullable=False),
        sa.Column("command", ascii_text(64), nullable=False),
        sa.Column("payload", json_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("stream", "name"),
        **INNODB,
    )
    create_index(
        op.f("ix_reminder_due_at_stream_name_partition"),
        "reminder",
        ["due_at", "stream", "name", "partition"],
        unique=False,
    )


def downgrade() -> None:
    op.drop_table("reminder")
