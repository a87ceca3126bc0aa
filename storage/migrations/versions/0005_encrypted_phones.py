"""Phone numbers encrypted, data keys wrapped

Rows that are there keep their phone in plain until `storage.reencryption` moves them: that needs keys, which may have to come
over the network, and it takes longer than a migration may.

Revision ID: 0005
Revises: 0004
"""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import create_table

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INNODB: Any = {
    f"{server}_{key}": value
    for server in ("mysql", "mariadb")
    for key, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_PLAIN: Final = "plain_phones"


def ascii_text(length: int) -> sa.String:
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def binary(length: int) -> sa.LargeBinary:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def digest(length: int) -> sa.LargeBinary:
    return sa.LargeBinary(length).with_variant(mysql.BINARY(length), "mysql", "mariadb")


def upgrade() -> None:
    create_table(
        "data_key",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("provider", ascii_text(16), nullable=False),
        sa.Column("wrapped", binary(1024), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        **INNODB,
    )
    bind = op.get_bind()
    made = {found["name"]: found for found in sa.inspect(bind).get_columns("user")}
    with op.batch_alter_table("user") as user:  # SQLite builds the table anew, in the one transaction of the migration
        if not made["phone"]["nullable"]:
            user.alter_column("phone", existing_type=ascii_text(32), nullable=True)
        if "phone_sealed" not in made:
            user.add_column(sa.Column("phone_sealed", binary(96), nullable=True))
        if "phone_index" not in made:
            user.add_column(sa.Column("phone_index", digest(32), nullable=True))
    keys = {key["name"] for key in sa.inspect(bind).get_unique_constraints("user")}
    if "uq_user_phone_index" not in keys:
        with op.batch_alter_table("user") as user:
            user.create_unique_constraint("uq_user_phone_index", ["phone_index"])
    _note_plain()


def _note_plain() -> None:
    """Say that there are, or were, phones in plain: their traces are still in the files when no row has them any more."""
    bind = op.get_bind()
    people = sa.table("user", sa.column("id"), sa.column("phone"))
    setting = sa.table("setting", sa.column("key"), sa.column("value"))
    noted = bind.scalar(sa.select(setting.c.key).where(setting.c.key == _PLAIN))
    if noted is None and bind.scalar(sa.select(people.c.id).where(people.c.phone.is_not(None)).limit(1)) is not None:
        bind.execute(sa.insert(setting).values(key=_PLAIN, value="to be moved"))


def downgrade() -> None:
    """The columns go. A row whose phone has been moved would have none: then nothing is changed."""
    bind = op.get_bind()
    people = sa.table("user", sa.column("id"), sa.column("phone"))
    if bind.scalar(sa.select(people.c.id).where(people.c.phone.is_(None)).limit(1)) is not None:
        raise RuntimeError("phones are encrypted already: restore a backup of the former version instead")
    with op.batch_alter_table("user") as user:
        user.drop_constraint("uq_user_phone_index", type_="unique")
        user.drop_column("phone_index")
        user.drop_column("phone_sealed")
        user.alter_column("phone", existing_type=ascii_text(32), nullable=False)
    op.drop_table("data_key")
    setting = sa.table("setting", sa.column("key"))
    bind.execute(sa.delete(setting).where(setting.c.key == _PLAIN))
