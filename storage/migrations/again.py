"""Steps of a migration that may be taken again.

MySQL and MariaDB commit each change of the schema by itself: a migration that was cut off, by a crash or a power loss, has
made some of its tables, and is begun anew the next time.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op


def create_table(name: str, *items: sa.schema.SchemaItem, **options: Any) -> None:
    """Make a table, if it has not been made yet."""
    op.create_table(name, *items, if_not_exists=True, **options)


def create_index(name: str, table: str, columns: list[str], *, unique: bool = False) -> None:
    """Make an index, if it has not been made yet. MySQL has no words for that, so it is looked up."""
    made = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table)}
    if str(name) not in made:
        op.create_index(name, table, columns, unique=unique)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column, if it has not been added yet."""
    made = {found["name"] for found in sa.inspect(op.get_bind()).get_columns(table)}
    if column.name not in made:
        op.add_column(table, column)
