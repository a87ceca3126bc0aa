"""Uploads, documents of workers

Revision ID: 0009
Revises: 0008
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import add_column, create_index, create_table

revision = "0009"
down_revision = "0008"
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


def digest() -> sa.LargeBinary:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def sealed() -> sa.LargeBinary:
    return sa.LargeBinary(160).with_variant(mysql.VARBINARY(160), "mysql", "mariadb")


def upgrade() -> None:
    add_column("user", sa.Column("identity_until", sa.BigInteger(), nullable=False, server_default="0"))
    add_column("user", sa.Column("licences", sa.Text(), nullable=True))
    create_table(
        "upload",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("owner_id", ascii_text(36), nullable=False),
        sa.Column("purpose", ascii_text(16), nullable=False),
        sa.Column("content_type", ascii_text(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", digest(), nullable=False),
        sa.Column("object", ascii_text(32), nullable=False),
        sa.Column("key_sealed", sealed(), nullable=True),
        sa.Column("ready", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("doomed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        **INNODB,
    )
    create_index(op.f("ix_upload_due_at"), "upload", ["due_at"])
    create_index(op.f("ix_upload_owner_id_id"), "upload", ["owner_id", "id"])
    create_table(
        "upload_use",
        sa.Column("upload_id", ascii_text(36), nullable=False),
        sa.Column("stream", ascii_text(64), nullable=False),
        sa.Column("message_id", ascii_text(64), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", "stream", "message_id"),
        **INNODB,
    )
    create_table(
        "worker_document",
        sa.Column("id", ascii_text(36), nullable=False),
        sa.Column("worker_id", ascii_text(36), nullable=False),
        sa.Column("kind", ascii_text(16), nullable=False),
        sa.Column("skill", sa.String(64), nullable=False),
        sa.Column("upload_id", ascii_text(36), nullable=False),
        sa.Column("number_sealed", sealed(), nullable=True),
        sa.Column("state", ascii_text(16), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("reviewed_at", sa.BigInteger(), nullable=True),
        sa.Column("reviewed_by", ascii_text(36), nullable=True),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("upload_id", name=op.f("uq_worker_document_upload_id")),
        **INNODB,
    )
    create_index(op.f("ix_worker_document_worker_id"), "worker_document", ["worker_id"])
    create_index(op.f("ix_worker_document_state_created_at_id"), "worker_document", ["state", "created_at", "id"])


def downgrade() -> None:
    for table in ("worker_document", "upload_use", "upload"):
        op.drop_table(table)
    for column in ("licences", "identity_until"):
        op.drop_column("user", column)
