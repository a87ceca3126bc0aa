"""Where device sessions were seen; device keys, second factors, API keys

Revision ID: 0006
Revises: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import add_column, create_index, create_table

revision = "0006"
down_revision = "0005"
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


def real() -> sa.Float[float]:
    return sa.Float(53).with_variant(mysql.DOUBLE(asdecimal=False), "mysql", "mariadb")


def blob() -> sa.LargeBinary:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def digest() -> sa.LargeBinary:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def upgrade() -> None:
    for column in (
        sa.Column("ip", ascii_text(64), nullable=False, server_default=""),
        sa.Column("user_agent", sa.String(200), nullable=False, server_default=""),
        sa.Column("country", ascii_text(2), nullable=False, server_default=""),
        sa.Column("city", sa.String(120), nullable=False, server_default=""),
        sa.Column("lat", real(), nullable=True),
        sa.Column("lon", real(), nullable=True),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("second_factor_at", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("device_key_id", ascii_text(36), nullable=True),
    ):
        add_column("device_session", column)
    create_table(
        "device_key",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("hash", digest(), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("public_key", blob(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("user_id", "hash", name=op.f("uq_device_key_user_id_hash")),
        **INNODB,
    )
    create_table(
        "totp_secret",
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("sealed", blob(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
        **INNODB,
    )
    create_table(
        "api_key",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("user_id", ascii_text(36), nullable=False),
        sa.Column("hash", digest(), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash", name=op.f("uq_api_key_hash")),
        **INNODB,
    )
    create_index(op.f("ix_api_key_user_id"), "api_key", ["user_id"])


def downgrade() -> None:
    for table in ("api_key", "totp_secret", "device_key"):
        op.drop_table(table)
    columns = ("ip", "user_agent", "country", "city", "lat", "lon", "confirmed_at", "second_factor_at", "device_key_id")
    for column in columns:
        op.drop_column("device_session", column)
