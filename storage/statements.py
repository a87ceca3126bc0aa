"""SQL that is compiled once and then run with plain tuples, from the event loop or within SQLite's thread.

SQLAlchemy's own caching still costs more per flush than the database does; the text itself is always made from the
tables of `storage.tables`, so there is one schema and one spelling of it.
"""

import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

WIDEST = 128
"""The most terms that one statement repeats; more are split."""

T = TypeVar("T")
Step = tuple["Prepared", Sequence[tuple[Any, ...]]]
"""A statement, and the rows to run it for."""
Script = Generator["Ask | Step", Sequence[Any], T]
"""What a transaction does, whoever runs it: statements, one after the other. An `Ask` is answered with its rows, whose
columns are told apart by their order; a `Step` with nothing."""
Changes = Callable[[Any, Any], list[tuple[str, Any]]]
"""From the new row and the old one: what an upsert sets, in order. MySQL evaluates from left to right, so a column that
others are compared by comes last."""


class Prepared(NamedTuple):
    """SQL text for the driver, and the names of its parameters in order."""

    text: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]

    def row(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters in order; those that are not given are constants that the dialect has put there."""
        return tuple(values[name] if name in values else self.constants[name] for name in self.names)


class Ask(NamedTuple):
    """A query, and its parameters by name."""

    statement: Prepared
    values: Mapping[str, Any]


class Preparer:
    """Statements of one dialect, each compiled at its first use."""

    def __init__(self, dialect: sa.Dialect) -> None:
        self._dialect = dialect
        self._made: dict[tuple[object, int], Prepared] = {}

    def prepare(self, build: Callable[[int], Any], width: int = 1) -> Prepared:
        """The statement that `build` makes for so many terms. `build` is a function of a module, never a closure."""
        key = (build, width)
        if (made := self._made.get(key)) is None:
            made = self._made[key] = self._compile(build(width), None)
        return made

    def over_marks(self, build: Callable[[Any], Any]) -> Prepared:
        """The statement that `build` makes over a table (stream, mark) whose rows come as one parameter `marks`: JSON.

        One text serves any number of streams, and MariaDB looks each up once: for a wide OR of ranges it first goes down
        the index for both ends of every range, to guess how many rows there are.
        """
        if (made := self._made.get((build, 0))) is None:
            made = self._made[build, 0] = self._compile(build(self._marks()), None)
        return made

    def _marks(self) -> Any:
        given: Any = sa.bindparam("marks")
        if self._dialect.name != "sqlite":
            return _MarksTable(given).table_valued("stream", "mark", name="marks")
        each = sa.func.json_each(given).table_valued("value")
        parts = (sa.func.json_extract(each.c.value, sa.literal_column(f"'$[{n}]'")) for n in range(2))
        return sa.select(*(part.label(name) for part, name in zip(parts, ("stream", "mark"), strict=True))).subquery(
            "marks"
        )

    def insert(self, table: sa.Table) -> Prepared:
        """Insert rows given as tuples in the order of the table's columns."""
        if (made := self._made.get((table, 0))) is None:
            made = self._made[table, 0] = self._compile(sa.insert(table), table)
        return made

    def upsert(self, table: sa.Table, changes: Changes) -> Prepared:
        """The same, where a row whose primary key exists is changed instead. `changes` is a function of a module."""
        if (made := self._made.get((changes, 0))) is None:
            statement: Any
            if self._dialect.name == "sqlite":
                statement = sqlite.insert(table)
                new = statement.excluded
                statement = statement.on_conflict_do_update(
                    index_elements=list(table.primary_key), set_=dict(changes(new, table.c))
                )
            else:
                statement = mysql.insert(table)
                statement = statement.on_duplicate_key_update(changes(statement.inserted, table.c))
            made = self._made[changes, 0] = self._compile(statement, table)
        return made

    def _compile(self, statement: Any, table: sa.Table | None) -> Prepared:
        columns = None if table is None else [column.key for column in table.columns]
        compiled = statement.compile(dialect=self._dialect, column_keys=columns)
        names = tuple(compiled.positiontup or ())
        assert columns is None or list(names) == columns, f"{names} are not the columns of {table}"
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return Prepared(str(compiled), names, constants)


class _MarksTable(FunctionElement[Any]):
    name = "json_table"
    inherit_cache = False


@compiles(_MarksTable)
def _marks_table(element: _MarksTable, compiler: Any, **options: Any) -> str:
    columns = "stream VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]', mark BIGINT PATH '$[1]'"
    return f"JSON_TABLE({compiler.process(element.clauses, **options)}, '$[*]' COLUMNS ({columns}))"


async def run(connection: AsyncConnection, statement: Prepared, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run the statement once for every row, in one round trip where the driver can."""
    if rows:
        await connection.exec_driver_sql(statement.text, list(rows))


async def fetch(connection: AsyncConnection, statement: Prepared, values: Mapping[str, Any]) -> Sequence[Any]:
    """The rows of a query."""
    return (await connection.exec_driver_sql(statement.text, statement.row(values))).all()


async def play(connection: AsyncConnection, script: Script[T]) -> T:
    """What the script returns, its statements run on the connection."""
    answer: Sequence[Any] | None = None
    while True:
        try:
            wanted = script.send(answer) if answer is not None else next(script)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(wanted, Ask):
            answer = await fetch(connection, *wanted)
        else:
            await run(connection, *wanted)
            answer = None


async def play_on_cursor(cursor: Any, script: Script[T]) -> T:
    """The same on a cursor of asyncmy: its statements cost a third of what they do through SQLAlchemy."""
    answer: Sequence[Any] | None = None
    while True:
        try:
            wanted = script.send(answer) if answer is not None else next(script)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(wanted, Ask):
            await cursor.execute(wanted.statement.text, wanted.statement.row(wanted.values))
            answer = await cursor.fetchall()
            continue
        statement, rows = wanted
        if rows:
            await cursor.executemany(statement.text, rows)
        answer = None


def play_in_thread(connection: sqlite3.Connection, script: Script[T]) -> T:
    """The same where the connection is SQLite's own, in the thread that may use it."""
    answer: Sequence[Any] | None = None
    while True:
        try:
            wanted = script.send(answer) if answer is not None else next(script)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(wanted, Ask):
            answer = connection.execute(wanted.statement.text, wanted.statement.row(wanted.values)).fetchall()
            continue
        statement, rows = wanted
        if rows:
            connection.executemany(statement.text, rows)
        answer = None


def wide(items: Sequence[T], widest: int = WIDEST) -> Iterator[list[T]]:
    """The items in pieces whose lengths are powers of two, filled up with the last one: few texts serve any number."""
    for start in range(0, len(items), widest):
        piece = list(items[start : start + widest])
        width = 1 << (len(piece) - 1).bit_length()
        yield piece + [piece[-1]] * (width - len(piece))


def numbered(**columns: Sequence[Any]) -> dict[str, Any]:
    """Parameters `name0`, `name1` … for the terms of a wide statement."""
    return {f"{name}{n}": value for name, values in columns.items() for n, value in enumerate(values)}


def later(new: Any, old: Any, name: str) -> tuple[str, Any]:
    """Keep the greater of the new and the old value."""
    return name, sa.case((new[name] > old[name], new[name]), else_=old[name])
