"""The newest schema made at once, in a database that has none.

On MySQL and MariaDB each table comes with its indexes, in one statement: making a table is atomic there, changing one is
not. MariaDB 10.11 does not sync the renaming of a table's definition before it forgets the change, so that a power loss
at that moment leaves the new table in InnoDB and the old one in the server, and nobody can read it any more.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from storage.migrations.full_text import MYSQL_KEY, create_full_text
from storage.tables import message_index, metadata


class _CreateWithIndexes(CreateTable):
    """CREATE TABLE of MySQL, which takes the indexes too."""


@compiles(_CreateWithIndexes)
def _compile(create: _CreateWithIndexes, compiler: Any, **options: Any) -> str:
    head, end, of_table = str(compiler.visit_create_table(create, **options)).rpartition("\n)")
    quote = compiler.preparer.quote
    keys = [
        f"KEY {quote(index.name)} ({', '.join(quote(column.name) for column in index.columns)})"
        for index in sorted(create.element.indexes, key=lambda index: str(index.name))
    ]
    if create.element is message_index:
        keys.append(MYSQL_KEY)
    return "".join((head, *(f",\n\t{key}" for key in keys), end, of_table))


def can_be_made(connection: Connection) -> bool:
    """Whether nothing is there but what `make` has left when it was cut off."""
    inspector = sa.inspect(connection)
    for name in inspector.get_table_names():
        if name in metadata.tables:
            made = {column["name"] for column in inspector.get_columns(name)}
            if made != set(metadata.tables[name].columns.keys()):
                return False
    return True


def make(connection: Connection) -> None:
    """Make the tables that are not there yet."""
    if connection.dialect.name == "sqlite":
        metadata.create_all(connection)
        create_full_text(connection)
        return
    made = set(sa.inspect(connection).get_table_names())
    for table in metadata.sorted_tables:
        if table.name not in made:
            connection.execute(_CreateWithIndexes(table))
