"""Where a message's texts stand, what is hidden in them, and no content of what has been deleted

Revision ID: 0003
Revises: 0002
"""

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from storage.migrations.again import add_column

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CONTENT: Final = ("text", "attachments", "reply_to", "card")


def json_bytes() -> sa.LargeBinary:
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    add_column("conversation", sa.Column("revealed_at", sa.BigInteger(), nullable=False, server_default="0"))
    add_column("message_change", sa.Column("texts", json_bytes(), nullable=True))
    add_column("message_change", sa.Column("masked", json_bytes(), nullable=True))
    add_column(
        "message_change",
        sa.Column("original", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=True),
    )
    _note_texts()
    _erase_deleted()


_log = sa.table(
    "partition_log",
    *(sa.column(name) for name in ("partition", "position", "stream", "offset", "type", "command_id", "body")),
)
_change = sa.table(
    "message_change", *(sa.column(name) for name in ("conversation_id", "message_id", "deleted_at", "texts"))
)
_conversation = sa.table("conversation", sa.column("id"), sa.column("last_message"))


class _Named(msgspec.Struct):
    message_id: str


def _note_texts() -> None:
    """Each message's edits by their offsets."""
    bind = op.get_bind()
    texts: dict[tuple[str, str], list[int]] = {}
    edits = sa.select(_log.c.stream, _log.c.offset, _log.c.body).where(_log.c.type == "message.edited")
    for stream, offset, body in bind.execute(edits.order_by(_log.c.stream, _log.c.offset)):
        message_id = msgspec.json.decode(body, type=_Named).message_id
        texts.setdefault((stream.partition(":")[2], message_id), []).append(offset)
    for (conversation_id, message_id), offsets in texts.items():
        key = (_change.c.conversation_id == conversation_id, _change.c.message_id == message_id)
        bind.execute(sa.update(_change).where(*key).values(texts=msgspec.json.encode(offsets)))


def _erase_deleted() -> None:
    """What was deleted before this version, without its content."""
    bind = op.get_bind()
    deleted = sa.select(_change.c.conversation_id, _change.c.message_id, _change.c.texts)
    for conversation_id, message_id, texts in bind.execute(deleted.where(_change.c.deleted_at.is_not(None))).all():
        stream = f"conversation:{conversation_id}"
        of_it = _log.c.command_id == message_id
        if texts is not None:
            of_it = sa.or_(of_it, _log.c.offset.in_(msgspec.json.decode(texts)))
        rows = sa.select(_log.c.partition, _log.c.position, _log.c.body)
        for partition, position, body in bind.execute(rows.where(_log.c.stream == stream, of_it)).all():
            key = (_log.c.partition == partition, _log.c.position == position)
            bind.execute(sa.update(_log).where(*key).values(body=_erased(body)))
        last = bind.scalar(sa.select(_conversation.c.last_message).where(_conversation.c.id == conversation_id))
        if last is not None and msgspec.json.decode(last, type=_Named).message_id == message_id:
            known = _conversation.c.id == conversation_id
            bind.execute(sa.update(_conversation).where(known).values(last_message=_erased(last)))


def _erased(body: bytes) -> bytes:
    fields: dict[str, Any] = msgspec.json.decode(body)
    for name in _CONTENT:
        fields.pop(name, None)
    return msgspec.json.encode(fields | {"erased": True})


def downgrade() -> None:
    for column in ("original", "masked", "texts"):
        op.drop_column("message_change", column)
    op.drop_column("conversation", "revealed_at")
