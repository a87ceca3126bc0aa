"""The log, the read models, and people

Revision ID: 0001
Revises: nothing
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_index, create_table

revision = "0001"
down_revision = None
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


def long_text() -> sa.Text:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def json_bytes() -> sa.LargeBinary:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def digest(length: int) -> sa.LargeBinary:
    return sa.LargeBinary(length).with_variant(mysql.BINARY(length), "mysql", "mariadb")


def real() -> sa.Float[float]:
    return sa.Float(53).with_variant(mysql.DOUBLE(asdecimal=False), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "claim",
        sa.Column("key", ascii_text(128), nullable=False),
        sa.Column("holder", ascii_text(64), nullable=False),
        sa.Column("reserved_until", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key"),
        **INNODB,
    )
    create_table(
        "conversation",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("order_id", ascii_text(36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("last_message", json_bytes(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        **INNODB,
    )
    create_table(
        "conversation_member",
        sa.Column("conversation_id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("joined_offset", sa.BigInteger(), nullable=False),
        sa.Column("left_offset", sa.BigInteger(), nullable=True),
        sa.Column("read_offset", sa.BigInteger(), nullable=False),
        sa.Column("delivered_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "user_id"),
        **INNODB,
    )
    create_index(op.f("ix_conversation_member_user_id"), "conversation_member", ["user_id"], unique=False)
    create_table(
        "device_session",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("device_id", sa.String(length=200), nullable=False),
        sa.Column("device_name", sa.String(length=200), nullable=False),
        sa.Column("platform", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        **INNODB,
    )
    create_index(op.f("ix_device_session_user_id"), "device_session", ["user_id"], unique=False)
    create_table(
        "ledger_posting",
        sa.Column("order_id", ascii_text(36), nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account", sa.String(length=160), nullable=False),
        sa.Column("debit", sa.BigInteger(), nullable=False),
        sa.Column("credit", sa.BigInteger(), nullable=False),
        sa.Column("currency", ascii_text(3), nullable=False),
        sa.Column("posting", ascii_text(32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", "offset", "n"),
        **INNODB,
    )
    create_index(op.f("ix_ledger_posting_account_at"), "ledger_posting", ["account", "at"], unique=False)
    create_table(
        "message_change",
        sa.Column("conversation_id", ascii_text(36), nullable=False),
        sa.Column("message_id", ascii_text(64), nullable=False),
        sa.Column("text", long_text(), nullable=True),
        sa.Column("edited_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.Column("reactions", json_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "message_id"),
        **INNODB,
    )
    create_table(
        "order_party",
        sa.Column("order_id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("role", ascii_text(16), nullable=False),
        sa.Column("hired", sa.Boolean(), nullable=False),
        sa.Column("state", ascii_text(32), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id", "user_id", "role"),
        **INNODB,
    )
    create_index(
        op.f("ix_order_party_user_id_role_updated_at"), "order_party", ["user_id", "role", "updated_at"], unique=False
    )
    create_table(
        "partition_log",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stream", ascii_text(64), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=True),
        sa.Column("type", ascii_text(64), nullable=False),
        sa.Column("command_id", ascii_text(64), nullable=True),
        sa.Column("command_hash", digest(16), nullable=True),
        sa.Column("actor", ascii_text(128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("body", json_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "position"),
        sa.UniqueConstraint("stream", "command_id", name=op.f("uq_partition_log_stream_command_id")),
        sa.UniqueConstraint("stream", "offset", name=op.f("uq_partition_log_stream_offset")),
        **INNODB,
    )
    create_table(
        "refresh_token",
        sa.Column("hash", digest(32), nullable=False),
        sa.Column("session_id", ascii_text(36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("spent_at", sa.BigInteger(), nullable=True),
        sa.Column("successor_sealed", json_bytes(), nullable=True),
        sa.Column("successor_hash", digest(32), nullable=True),
        sa.PrimaryKeyConstraint("hash"),
        **INNODB,
    )
    create_index(op.f("ix_refresh_token_session_id"), "refresh_token", ["session_id"], unique=False)
    create_table(
        "relay_cursor",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition"),
        **INNODB,
    )
    create_table(
        "setting",
        sa.Column("key", ascii_text(64), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        **INNODB,
    )
    create_table(
        "stream_state",
        sa.Column("stream", ascii_text(64), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("schema", sa.Integer(), nullable=False),
        sa.Column("newest_id_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", json_bytes(), nullable=False),
        sa.PrimaryKeyConstraint("stream"),
        **INNODB,
    )
    create_table(
        "track_position",
        sa.Column("order_id", ascii_text(36), nullable=False),
        sa.Column("visit_id", ascii_text(36), nullable=False),
        sa.Column("at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lat", real(), nullable=False),
        sa.Column("lon", real(), nullable=False),
        sa.Column("accuracy_m", real(), nullable=False),
        sa.Column("speed_mps", real(), nullable=True),
        sa.Column("heading_deg", real(), nullable=True),
        sa.PrimaryKeyConstraint("order_id", "visit_id", "at"),
        **INNODB,
    )
    create_table(
        "user",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("phone", ascii_text(32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("locale", ascii_text(35), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("avatar", sa.String(length=1000), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("base_lat", real(), nullable=True),
        sa.Column("base_lon", real(), nullable=True),
        sa.Column("radius_m", real(), nullable=True),
        sa.Column("hourly_rate", sa.BigInteger(), nullable=True),
        sa.Column("rating_sum", sa.BigInteger(), nullable=False),
        sa.Column("rating_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("phone", name=op.f("uq_user_phone")),
        **INNODB,
    )
    create_index(op.f("ix_user_base_lat_base_lon"), "user", ["base_lat", "base_lon"], unique=False)


def downgrade() -> None:
    for table in (
        "user",
        "track_position",
        "stream_state",
        "setting",
        "relay_cursor",
        "refresh_token",
        "partition_log",
        "order_party",
        "message_change",
        "ledger_posting",
        "device_session",
        "conversation_member",
        "conversation",
        "claim",
    ):
        op.drop_table(table)
