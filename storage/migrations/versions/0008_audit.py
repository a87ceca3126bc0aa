"""The audit log

Revision ID: 0008
Revises: 0004
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_index, create_table

revision = "0008"
down_revision = "0007"
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


def digest() -> sa.LargeBinary:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "audit",
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", ascii_text(64), nullable=False),
        sa.Column("session", ascii_text(64), nullable=False),
        sa.Column("ip", ascii_text(64), nullable=False),
        sa.Column("act", ascii_text(64), nullable=False),
        sa.Column("object", ascii_text(128), nullable=False),
        sa.Column("outcome", ascii_text(64), nullable=False),
        sa.Column("details", json_bytes(), nullable=False),
        sa.Column("digest", digest(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        **INNODB,
    )
    create_index(op.f("ix_audit_at_n"), "audit", ["at", "n"])
    create_index(op.f("ix_audit_actor_at_n"), "audit", ["actor", "at", "n"])
    create_index(op.f("ix_audit_act_at_n"), "audit", ["act", "at", "n"])
    create_table(
        "audit_head",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("seal", digest(), nullable=False),
        sa.Column("sealed_by", ascii_text(16), nullable=False),
        sa.PrimaryKeyConstraint("one"),
        **INNODB,
    )


def downgrade() -> None:
    for table in ("audit_head", "audit"):
        op.drop_table(table)
