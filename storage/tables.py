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
    sa.Column("phone", ascii_text(32), nullable=False, unique=True),
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
    sa.Index(None, "base_lat", "base_lon"),
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
