"""The full text beside `message_index`: an index on MariaDB and MySQL, a virtual table on SQLite, both named message_text.

No table of SQLAlchemy's can say what they are.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

MYSQL_KEY: Final = "FULLTEXT KEY message_text (tokens)"
"""As a part of the table's own definition."""

# Terms without places: all that is asked is which texts hold all of them, and places would take twice the room. The
# table's own rows are the content, and triggers keep the index true to them.
_SQLITE: Final = (
    """CREATE VIRTUAL TABLE IF NOT EXISTS message_text USING fts5 (
         tokens, content='message_index', content_rowid='id', detail=none, columnsize=0, tokenize='ascii')""",
    """CREATE TRIGGER IF NOT EXISTS message_text_insert AFTER INSERT ON message_index BEGIN
         INSERT INTO message_text (rowid, tokens) VALUES (new.id, new.tokens);
       END""",
    """CREATE TRIGGER IF NOT EXISTS message_text_delete AFTER DELETE ON message_index BEGIN
         INSERT INTO message_text (message_text, rowid, tokens) VALUES ('delete', old.id, old.tokens);
       END""",
    """CREATE TRIGGER IF NOT EXISTS message_text_update AFTER UPDATE ON message_index BEGIN
         INSERT INTO message_text (message_text, rowid, tokens) VALUES ('delete', old.id, old.tokens);
         INSERT INTO message_text (rowid, tokens) VALUES (new.id, new.tokens);
       END""",
)


def create_full_text(connection: Connection) -> None:
    """Make it, if it has not been made yet."""
    if connection.dialect.name == "sqlite":
        for statement in _SQLITE:
            connection.execute(sa.text(statement))
        return
    made = {index["name"] for index in sa.inspect(connection).get_indexes("message_index")}
    if "message_text" not in made:
        connection.execute(sa.text(f"ALTER TABLE message_index ADD {MYSQL_KEY}"))
