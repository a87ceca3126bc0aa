"""Full text of messages, blocks between users, muted conversations

Revision ID: 0004
Revises: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_index, create_table
from storage.migrations.full_text import create_full_text

revision = "0004"
down_revision = "0003"
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


def ascii_long() -> sa.Text:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "message_index_cursor",
        sa.Column("conversation_id", ascii_text(36), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("conversation_id"),
        sa.UniqueConstraint("number", name=op.f("uq_message_index_cursor_number")),
        **INNODB,
    )
    create_table(
        "message_index",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("conversation_id", ascii_text(36), nullable=False),
        sa.Column("message_id", ascii_text(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("tokens", ascii_long(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        **INNODB,
    )
    create_index(op.f("ix_message_index_message_id"), "message_index", ["message_id"])
    create_full_text(op.get_bind())
    create_table(
        "user_block",
        sa.Column("blocker_id", ascii_text(36), nullable=False),
        sa.Column("blocked_id", ascii_text(36), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("blocker_id", "blocked_id"),
        **INNODB,
    )
    create_index(op.f("ix_user_block_blocked_id"), "user_block", ["blocked_id"])
    create_table(
        "conversation_mute",
        sa.Column("conversation_id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "user_id"),
        **INNODB,
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE IF EXISTS message_text")
    for table in ("conversation_mute", "user_block", "message_index", "message_index_cursor"):
        op.drop_table(table)
