"""`renoveasy audit verify`, and what the commands on the machine write into the audit log."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli import main
from storage.engine import migrate
from storage.tokens import SigningKeys

PHONE = "+8613800000001"


class Machine:
    """A data folder with a database, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "renoveasy.db"
        asyncio.run(migrate(f"sqlite+aiosqlite:///{self.database}", "test"))
        SigningKeys.open(folder / "keys")

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"RENOVEASY_DATA_DIR": str(self.folder)})

    def rows(self) -> list[Any]:
        with sqlite3.connect(self.database) as connection:
            found = connection.execute("SELECT act, outcome, actor, object, details FROM audit ORDER BY n").fetchall()
        connection.close()
        return found

    def change(self, statement: str) -> None:
        with sqlite3.connect(self.database) as connection:
            connection.execute(statement)
        connection.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_role_that_is_granted_and_a_key_that_is_made_are_written_down(machine: Machine) -> None:
    assert machine.run("grant", PHONE, "ops").exit_code == 0
    assert machine.run("rotate-keys").exit_code == 0
    granted, *rotated = machine.rows()
    assert granted[:2] == ("role.granted", "ok")
    assert granted[2].startswith("cli:")
    assert granted[3].startswith("user:")
    assert granted[4] == b'{"role":"ops"}'
    assert [row[:2] for row in rotated] == [("keys.rotated", "allowed"), ("keys.rotated", "ok")]
    assert PHONE[1:] not in str(machine.rows())


def test_no_role_is_granted_and_no_key_is_made_where_it_cannot_be_written_down(machine: Machine) -> None:
    machine.change("DROP TABLE audit")
    keys = sorted((machine.folder / "keys").glob("signing-*.pem"))
    assert machine.run("grant", PHONE, "ops").exit_code == 1
    assert machine.run("rotate-keys").exit_code == 1
    assert sorted((machine.folder / "keys").glob("signing-*.pem")) == keys
    with sqlite3.connect(machine.database) as connection:
        roles = connection.execute("SELECT roles FROM user").fetchall()
    connection.close()
    assert roles == [('["customer"]',)]


def test_a_log_in_order_is_said_to_be_and_its_mark_is_printed(machine: Machine) -> None:
    machine.run("grant", PHONE, "ops")
    result = machine.run("audit", "verify")
    assert (result.exit_code, result.output.split()[0]) == (0, "1")
    mark = result.output.split()[-1]
    machine.run("grant", PHONE, "admin")
    assert machine.run("audit", "verify", "--mark", mark).exit_code == 0


def test_a_log_that_was_tampered_with_ends_the_command_with_code_1_and_where(machine: Machine) -> None:
    machine.run("grant", PHONE, "ops")
    machine.run("grant", PHONE, "admin")
    machine.change("UPDATE audit SET actor = 'cli:nobody' WHERE n = 2")
    result = machine.run("audit", "verify")
    assert result.exit_code == 1
    assert "row 2 is not what was written" in result.output


def test_a_log_that_was_emptied_since_the_last_look_is_noticed_without_a_mark(machine: Machine) -> None:
    machine.run("grant", PHONE, "ops")
    assert machine.run("audit", "verify").exit_code == 0
    machine.change("DELETE FROM audit")
    machine.change("DELETE FROM audit_head")
    result = machine.run("audit", "verify")
    assert result.exit_code == 1
    assert "row 1 is not the one that was there" in result.output


def test_what_is_no_mark_is_said_to_be_none(machine: Machine) -> None:
    machine.run("grant", PHONE, "ops")
    for text in ("x", "1:zz", "1:00", "-1:" + "0" * 64):
        result = machine.run("audit", "verify", "--mark", text)
        assert result.exit_code == 2, text
        assert "a mark is a number" in result.output


def test_a_data_folder_that_never_wrote_an_act_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["audit", "verify"], env={"RENOVEASY_DATA_DIR": str(tmp_path)})
    assert result.exit_code == 1
    assert "nothing was written" in result.output
