"""The one schema, the same on SQLite and on MariaDB/MySQL.

Identifiers and stream names are ASCII and compared byte for byte; times are Unix milliseconds; JSON that is never
searched is kept as the bytes it came in. `storage/migrations` builds exactly these tables (a test compares them).
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.elements import quoted_name

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

PARTITION = quoted_name("partition", quote=True)
POSITION = quoted_name("position", quote=True)
OFFSET = quoted_name("offset", quote=True)


def ascii_text(length: int) -> sa.String:
    """Text of ASCII characters, compared byte for byte."""
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
    )


def json_bytes() -> sa.LargeBinary:
    """JSON as bytes, up to 16 MiB."""
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def digest(length: int) -> sa.LargeBinary:
    """A hash of a fixed number of bytes."""
    return sa.LargeBinary(length).with_variant(mysql.BINARY(length), "mysql", "mariadb")


def sealed(length: int) -> sa.LargeBinary:
    """A field that `storage/crypto.py` has encrypted: its text has up to 33 bytes less."""
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def real() -> sa.Float[float]:
    """A number in double precision."""
    return sa.Float(53).with_variant(mysql.DOUBLE(asdecimal=False), "mysql", "mariadb")


def table(name: str, *columns: SchemaItem) -> sa.Table:
    """A table of the schema: InnoDB and full Unicode on MySQL."""
    options: dict[str, Any] = {
        f"{server}_{key}": value
        for server in ("mysql", "mariadb")
        for key, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
    }
    return sa.Table(name, metadata, *columns, **options)


ID = ascii_text(36)
STREAM = ascii_text(64)
MS = sa.BigInteger()

# --- the log -----------------------------------------------------------------------------------------------------

partition_log = table(
    "partition_log",
    sa.Column(PARTITION, sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column(POSITION, sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("stream", STREAM, nullable=True),  # null: a takeover row
    sa.Column(OFFSET, sa.BigInteger(), nullable=True),
    sa.Column("type", ascii_text(64), nullable=False),
    sa.Column("command_id", ascii_text(64), nullable=True),
    sa.Column("command_hash", digest(16), nullable=True),
    sa.Column("actor", ascii_text(128), nullable=False),
    sa.Column("at", MS, nullable=False),
    sa.Column("body", json_bytes(), nullable=False),
    sa.UniqueConstraint("stream", OFFSET),
    sa.UniqueConstraint("stream", "command_id"),
)

stream_state = table(
    "stream_state",
    sa.Column("stream", STREAM, primary_key=True),
    sa.Column(OFFSET, sa.BigInteger(), nullable=False),
    sa.Column("schema", sa.Integer(), nullable=False),
    sa.Column("newest_id_ms", MS, nullable=False),
    sa.Column("body", json_bytes(), nullable=False),
)

relay_cursor = table(
    "relay_cursor",
    sa.Column(PARTITION, sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column(POSITION, sa.BigInteger(), nullable=False),
)

reminder = table(
    "reminder",
    sa.Column(PARTITION, sa.Integer(), nullable=False),
    sa.Column("stream", STREAM, primary_key=True),
    sa.Column("name", ascii_text(64), primary_key=True),
    sa.Column("due_at", MS, nullable=False),
    sa.Column("fence_offset", sa.BigInteger(), nullable=False),
    sa.Column("command", ascii_text(64), nullable=False),
    sa.Column("payload", json_bytes(), nullable=False),
    sa.Index(None, "due_at", "stream", "name", PARTITION),
)

setting = table(
    "setting",
    sa.Column("key", ascii_text(64), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
)

claim = table(
    "claim",
    sa.Column("key", ascii_text(128), primary_key=True),
    sa.Column("holder", STREAM, nullable=False),
    sa.Column("reserved_until", MS, nullable=True),  # null: kept until it is released
)

# --- conversations -----------------------------------------------------------------------------------------------

conversation = table(
    "conversation",
    sa.Column("id", ID, primary_key=True),
    sa.Column("order_id", ID, nullable=True),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("updated_at", MS, nullable=False),  # the last activity that is not a receipt
    sa.Column(OFFSET, sa.BigInteger(), nullable=False),
    sa.Column("last_message", json_bytes(), nullable=True),
    sa.Column("revealed_at", MS, nullable=False, server_default="0"),  # 0: contact details are masked still
)

conversation_member = table(
    "conversation_member",
    sa.Column("conversation_id", ID, primary_key=True),
    sa.Column("user_id", ID, primary_key=True),
    sa.Column("joined_offset", sa.BigInteger(), nullable=False),
    sa.Column("left_offset", sa.BigInteger(), nullable=True),
    sa.Column("read_offset", sa.BigInteger(), nullable=False),
    sa.Column("delivered_offset", sa.BigInteger(), nullable=False),
    sa.Index(None, "user_id"),
)

message_change = table(
    "message_change",
    sa.Column("conversation_id", ID, primary_key=True),
    sa.Column("message_id", ascii_text(64), primary_key=True),
    sa.Column("text", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=True),
    sa.Column("edited_at", MS, nullable=True),
    sa.Column("deleted_at", MS, nullable=True),
    sa.Column("reactions", json_bytes(), nullable=False),  # {emoji: [user id, …]}
    sa.Column("texts", json_bytes(), nullable=True),  # offsets of the later events that hold a text of it
    sa.Column("masked", json_bytes(), nullable=True),  # kinds of contact details hidden in `text`
    sa.Column("original", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=True),
)

# --- orders ------------------------------------------------------------------------------------------------------

order_party = table(
    "order_party",
    sa.Column("order_id", ID, primary_key=True),
    sa.Column("user_id", ID, primary_key=True),
    sa.Column("role", ascii_text(16), primary_key=True),  # customer, or worker: who has quoted or is hired
    sa.Column("hired", sa.Boolean(), nullable=False),
    sa.Column("state", ascii_text(32), nullable=False),
    sa.Column(OFFSET, sa.BigInteger(), nullable=False),
    sa.Column("updated_at", MS, nullable=False),
    sa.Index(None, "user_id", "role", "updated_at"),
)

ledger_posting = table(
    "ledger_posting",
    sa.Column("order_id", ID, primary_key=True),
    sa.Column(OFFSET, sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("account", sa.String(160), nullable=False),
    sa.Column("debit", sa.BigInteger(), nullable=False),
    sa.Column("credit", sa.BigInteger(), nullable=False),
    sa.Column("currency", ascii_text(3), nullable=False),
    sa.Column("posting", ascii_text(32), nullable=False),
    sa.Column("at", MS, nullable=False),
    sa.Index(None, "account", "at"),
)

track_position = table(
    "track_position",
    sa.Column("order_id", ID, primary_key=True),
    sa.Column("visit_id", ID, primary_key=True),
    sa.Column("at", MS, primary_key=True, autoincrement=False),
    sa.Column("lat", real(), nullable=False),
    sa.Column("lon", real(), nullable=False),
    sa.Column("accuracy_m", real(), nullable=False),
    sa.Column("speed_mps", real(), nullable=True),
    sa.Column("heading_deg", real(), nullable=True),
)

# --- people ------------------------------------------------------------------------------------------------------

user = table(
    "user",
    sa.Column("id", ID, primary_key=True),
    sa.Column(
        "phone", ascii_text(32), nullable=True, unique=True
    ),  # null: it is encrypted, as all of them are once moved
    sa.Column("phone_sealed", sealed(96), nullable=True),
    sa.Column("phone_index", digest(32), nullable=True, unique=True),  # the blind index that finds it
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("locale", ascii_text(35), nullable=False),
    sa.Column("roles", sa.Text(), nullable=False),  # JSON: a list of role names
    sa.Column("avatar", sa.String(1000), nullable=True),
    sa.Column("worker", sa.Text(), nullable=True),  # JSON of domain.aggregate.WorkerProfile
    sa.Column("base_lat", real(), nullable=True),  # these four repeat the profile, for searching
    sa.Column("base_lon", real(), nullable=True),
    sa.Column("radius_m", real(), nullable=True),
    sa.Column("hourly_rate", sa.BigInteger(), nullable=True),
    sa.Column("rating_sum", sa.BigInteger(), nullable=False),
    sa.Column("rating_count", sa.BigInteger(), nullable=False),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("updated_at", MS, nullable=False),
    sa.Column("identity_until", MS, nullable=False, server_default="0"),  # these two follow from worker_document
    sa.Column("licences", sa.Text(), nullable=True),  # JSON: by skill, until when
    sa.Index(None, "base_lat", "base_lon"),
)

data_key = table(
    "data_key",
    sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("provider", ascii_text(16), nullable=False),
    sa.Column("wrapped", sa.LargeBinary(1024).with_variant(mysql.VARBINARY(1024), "mysql", "mariadb"), nullable=False),
    sa.Column("created_at", MS, nullable=False),
)

device_session = table(
    "device_session",
    sa.Column("id", ID, primary_key=True),
    sa.Column("user_id", ID, nullable=False, index=True),
    sa.Column("device_id", sa.String(200), nullable=False),
    sa.Column("device_name", sa.String(200), nullable=False),
    sa.Column("platform", sa.String(64), nullable=False),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("last_seen_at", MS, nullable=False),
    sa.Column("revoked_at", MS, nullable=True),
    sa.Column("ip", ascii_text(64), nullable=False, server_default=""),  # as it came last; these six are empty: unknown
    sa.Column("user_agent", sa.String(200), nullable=False, server_default=""),  # without its numbers
    sa.Column("country", ascii_text(2), nullable=False, server_default=""),
    sa.Column("city", sa.String(120), nullable=False, server_default=""),
    sa.Column("lat", real(), nullable=True),
    sa.Column("lon", real(), nullable=True),
    sa.Column("confirmed_at", MS, nullable=False, server_default="0"),  # by a one-time code; 0: never
    sa.Column("second_factor_at", MS, nullable=False, server_default="0"),
    sa.Column("device_key_id", ID, nullable=True),  # the key that opened it
)

refresh_token = table(
    "refresh_token",
    sa.Column("hash", digest(32), primary_key=True),
    sa.Column("session_id", ID, nullable=False, index=True),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("expires_at", MS, nullable=False),
    sa.Column("spent_at", MS, nullable=True),
    sa.Column("successor_sealed", json_bytes(), nullable=True),
    sa.Column("successor_hash", digest(32), nullable=True),
)

# --- what speaks for a user beside a session ---------------------------------------------------------------------

device_key = table(
    "device_key",
    sa.Column("id", ID, primary_key=True),
    sa.Column("user_id", ID, nullable=False),
    sa.Column("hash", digest(32), nullable=False),  # of the public key
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("public_key", json_bytes(), nullable=False),  # DER, SubjectPublicKeyInfo
    sa.Column("created_at", MS, nullable=False),
    sa.Column("last_used_at", MS, nullable=True),
    sa.UniqueConstraint("user_id", "hash"),
)

totp_secret = table(
    "totp_secret",
    sa.Column("user_id", ID, primary_key=True),
    sa.Column("sealed", json_bytes(), nullable=False),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("confirmed_at", MS, nullable=True),
    sa.Column("last_step", sa.BigInteger(), nullable=False),  # no code of this or an earlier step counts again
)

api_key = table(
    "api_key",
    sa.Column("id", ID, primary_key=True),
    sa.Column("user_id", ID, nullable=False, index=True),
    sa.Column("hash", digest(32), nullable=False, unique=True),
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("created_at", MS, nullable=False),
    sa.Column("last_used_at", MS, nullable=True),
)

linked_identity = table(
    "linked_identity",
    sa.Column("digest", digest(32), primary_key=True),  # domain.identities.Vouched.digest
    sa.Column("user_id", ID, nullable=False),
    sa.Column("provider", ascii_text(32), nullable=False),
    sa.Column("linked_at", MS, nullable=False),
    sa.UniqueConstraint("user_id", "provider"),
)

erasure = table(
    "erasure",
    sa.Column("user_id", ID, primary_key=True),
    sa.Column("requested_at", MS, nullable=False),
    sa.Column("pass_at", MS, nullable=False),  # 0: between two passes
    sa.Column("cursor", ID, nullable=False),  # conversations up to this one are done in this pass
    sa.Column("due_at", MS, nullable=True, index=True),  # null: it is over
)

# --- searching, blocking, muting ---------------------------------------------------------------------------------

message_index_cursor = table(
    "message_index_cursor",
    sa.Column("conversation_id", ID, primary_key=True),
    sa.Column(OFFSET, sa.BigInteger(), nullable=False),  # what the log says up to here is in the index
    sa.Column("number", sa.BigInteger(), nullable=True, unique=True),  # null: nothing has been indexed yet
)

# The full text itself stands beside it: an index on MariaDB, a virtual table on SQLite, both named message_text and made
# by the migration, because no table of SQLAlchemy's can say either.
message_index = table(
    "message_index",
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("conversation_id", ID, nullable=False),
    sa.Column("message_id", ascii_text(64), nullable=False),
    sa.Column("version", sa.BigInteger(), nullable=False),  # the offset of the event that said it
    sa.Column(
        "tokens",
        sa.Text().with_variant(mysql.MEDIUMTEXT(charset="ascii", collation="ascii_bin"), "mysql", "mariadb"),
        nullable=False,
    ),
    sa.Index(None, "message_id"),
)

user_block = table(
    "user_block",
    sa.Column("blocker_id", ID, primary_key=True),
    sa.Column("blocked_id", ID, primary_key=True),
    sa.Column("active", sa.Boolean(), nullable=False),  # false: the block was ended at that time
    sa.Column("at", MS, nullable=False),  # later with every change
    sa.Index(None, "blocked_id"),
)

conversation_mute = table(
    "conversation_mute",
    sa.Column("conversation_id", ID, primary_key=True),
    sa.Column("user_id", ID, primary_key=True),
    sa.Column("until_ms", MS, nullable=False),  # 0: for ever
)

# --- uploads -----------------------------------------------------------------------------------------------------

upload = table(
    "upload",
    sa.Column("id", ID, primary_key=True),
    sa.Column("owner_id", ID, nullable=False),
    sa.Column("purpose", ascii_text(16), nullable=False),
    sa.Column("content_type", ascii_text(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger(), nullable=False),
    sa.Column("digest", digest(32), nullable=False),  # of what was sent
    sa.Column("object", ascii_text(32), nullable=False),  # the name of its content in the object store
    sa.Column("key_sealed", sealed(160), nullable=True),  # what opens its content; null: nothing does any more
    sa.Column("ready", sa.Boolean(), nullable=False),  # false: its content is being stored
    sa.Column("created_at", MS, nullable=False),
    sa.Column("due_at", MS, nullable=True, index=True),  # when somebody looks if it is named; null: it is
    sa.Column("doomed_at", MS, nullable=False),  # 0: it may be named
    sa.Index(None, "owner_id", "id"),
)

upload_use = table(
    "upload_use",
    sa.Column("upload_id", ID, primary_key=True),
    sa.Column("stream", STREAM, primary_key=True),
    sa.Column("message_id", ascii_text(64), primary_key=True),  # empty beside what is no message
)

worker_document = table(
    "worker_document",
    sa.Column("id", ID, primary_key=True),
    sa.Column("worker_id", ID, nullable=False, index=True),
    sa.Column("kind", ascii_text(16), nullable=False),
    sa.Column("skill", sa.String(64), nullable=False),
    sa.Column("upload_id", ID, nullable=False, unique=True),
    sa.Column("number_sealed", sealed(160), nullable=True),
    sa.Column("state", ascii_text(16), nullable=False),
    sa.Column("expires_at", MS, nullable=False),  # 0: not said
    sa.Column("created_at", MS, nullable=False),
    sa.Column("reviewed_at", MS, nullable=True),
    sa.Column("reviewed_by", ID, nullable=True),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Index(None, "state", "created_at", "id"),
)

# --- the audit log -----------------------------------------------------------------------------------------------

audit = table(
    "audit",
    sa.Column("n", sa.BigInteger(), primary_key=True, autoincrement=False),  # 1, 2, 3 … without a hole
    sa.Column("id", ID, nullable=False),
    sa.Column("at", MS, nullable=False),
    sa.Column("actor", ascii_text(64), nullable=False),
    sa.Column("session", ascii_text(64), nullable=False),
    sa.Column("ip", ascii_text(64), nullable=False),
    sa.Column("act", ascii_text(64), nullable=False),
    sa.Column("object", ascii_text(128), nullable=False),
    sa.Column("outcome", ascii_text(64), nullable=False),
    sa.Column("details", json_bytes(), nullable=False),
    sa.Column("digest", digest(32), nullable=False),  # over the row and the seal of the one before
    sa.Index(None, "at", "n"),
    sa.Index(None, "actor", "at", "n"),
    sa.Index(None, "act", "at", "n"),
)

audit_head = table(
    "audit_head",
    sa.Column("one", sa.Integer(), primary_key=True, autoincrement=False),  # there is one row
    sa.Column("n", sa.BigInteger(), nullable=False),
    sa.Column("seal", digest(32), nullable=False),
    sa.Column("sealed_by", ascii_text(16), nullable=False),  # which key: it tells nothing else about it
)

audit_base = table(
    "audit_base",
    sa.Column("one", sa.Integer(), primary_key=True, autoincrement=False),  # there is one row, or none
    sa.Column("n", sa.BigInteger(), nullable=False),  # the last act that was removed because of its age
    sa.Column("digest", digest(32), nullable=False),  # that row's
    sa.Column("proof", digest(32), nullable=False),  # that the platform has removed it
)
