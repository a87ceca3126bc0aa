"""Where the audit log begins when old acts were removed; erased accounts have no phone

Revision ID: 0010
Revises: 0009
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_table

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INNODB: Any = {
    f"{server}_{key}": value
    for server in ("mysql", "mariadb")
    for key, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}


def digest() -> sa.LargeBinary:
    return sa.LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "audit_base",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("digest", digest(), nullable=False),
        sa.Column("proof", digest(), nullable=False),
        sa.PrimaryKeyConstraint("one"),
        **INNODB,
    )
    # An erased account had its own id there, which is no number: phones begin with a plus.
    people = sa.table("user", sa.column("phone"))
    op.get_bind().execute(sa.update(people).where(people.c.phone.not_like("+%")).values(phone=None))


def downgrade() -> None:
    op.drop_table("audit_base")
