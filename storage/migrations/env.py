"""Alembic's entry: runs on the connection that `storage.engine.migrate` hands over, inside its transaction."""

from typing import Any

from alembic import context
from sqlalchemy import event

from storage.tables import metadata

connection = context.config.attributes["connection"]


def _sync(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
    """Sync the folder of MariaDB's table definitions after each table that has changed.

    MariaDB 10.11 itself does that only when it makes a table: until then, five seconds at most on ext4, a power loss leaves
    the changed table in InnoDB and the definition of before in the server, and nobody can read it any more.
    """
    if statement.split(maxsplit=1)[0] in ("ALTER", "CREATE", "DROP"):
        cursor.execute("CREATE OR REPLACE TABLE migration_sync (nothing INT) ENGINE=MEMORY")
        cursor.execute("DROP TABLE migration_sync")


if getattr(connection.dialect, "is_mariadb", False):
    event.listen(connection, "after_cursor_execute", _sync)
context.configure(
    connection=connection,
    target_metadata=metadata,
    transactional_ddl=False,
    compare_type=True,
)
context.run_migrations()
