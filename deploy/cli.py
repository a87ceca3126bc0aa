"""`renoveasy`: the command. Heavy imports wait until the command that needs them."""

import asyncio
import json
import os
import secrets
import sys
from typing import NoReturn

import click

from deploy.settings import Settings, SettingsError, from_environment, unknown_keys

USAGE_ERROR = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="renoveasy")
def main() -> None:
    """RenovEasy: the real-time backend of a renovation marketplace.

    Settings are environment variables that begin with RENOVEASY_; the platform is found by its data folder,
    RENOVEASY_DATA_DIR (./var).
    """


def settings_or_exit() -> Settings:
    """The settings; a bad one ends the program with code 2 and the sentence that names it."""
    try:
        settings = from_environment()
    except SettingsError as error:
        fail(str(error), USAGE_ERROR)
    for key, meant in unknown_keys(os.environ).items():
        hint = f"; did you mean {meant}?" if meant else ""
        click.echo(f"warning: {key} is not a setting and has no effect{hint}", err=True)
    return settings


def fail(text: str, code: int = 1) -> NoReturn:
    """End the program with a sentence on standard error."""
    click.echo(f"error: {text}", err=True)
    sys.exit(code)


@main.command()
def up() -> None:
    """Run the platform on this machine until Ctrl-C.

    Starts NATS, Valkey, SQLite and Ray unless RENOVEASY_NATS_URL, RENOVEASY_REDIS_URL or RENOVEASY_DATABASE_URL name
    others. The last line begins with "ready".
    """
    from deploy.up import run

    sys.exit(run(settings_or_exit()))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list, one object per process.")
def ps(as_json: bool) -> None:
    """Show the processes of the running platform: role, name, pid, ports."""
    from deploy import registry, runtime

    settings = settings_or_exit()
    running = runtime.is_locked(settings.data_dir)
    found = registry.processes(settings) if running else []
    if as_json:
        click.echo(json.dumps(found))
    elif found:
        for process in found:
            ports = " ".join(f"{name}={port}" for name, port in process["ports"].items())
            click.echo(f"{process['role']:<12}{process['name']:<16}{process['pid']:<9}{ports}")
    if not running:
        fail(f"no platform runs on the data folder {settings.data_dir} (RENOVEASY_DATA_DIR)")


@main.command()
def migrate() -> None:
    """Bring the database's schema to the newest version; safe to repeat, and from many machines at once."""
    from storage.engine import migrate as bring_up_to_date

    settings = settings_or_exit()
    url = settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}"
    try:
        version = asyncio.run(bring_up_to_date(url, secrets.token_hex(8)))
    except Exception as error:
        fail(f"the database cannot be migrated: {error}")
    click.echo(f"the schema is at {version}")


@main.command()
@click.option(
    "--pairs", default=2, show_default=True, type=click.IntRange(1, 50), help="Customers, each with a worker."
)
@click.option("--fast", is_flag=True, help="Without the pauses of a real day.")
@click.option("--seed", type=int, help="The same seed plays the same story.")
def demo(pairs: int, fast: bool, seed: int | None) -> None:
    """Play customers and workers against the running platform, from phone login to rating, and show it live."""
    from deploy import runtime
    from deploy.demo import addresses_of, run_demo

    settings = settings_or_exit()
    running = runtime.read(settings.data_dir) if runtime.is_locked(settings.data_dir) else None
    sys.exit(run_demo(addresses_of(running.settings if running else settings), pairs, fast, seed))


@main.command()
def doctor() -> None:
    """Check everything that the platform needs, and say what to do about what is missing."""
    from rich.console import Console
    from rich.table import Table

    from deploy.doctor import examine, worst

    findings = asyncio.run(examine(settings_or_exit()))
    table = Table(box=None, pad_edge=False)
    for column in ("", "", "", "what to do"):
        table.add_column(column)
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in findings:
        table.add_row(f"[{colours[finding.verdict]}]{finding.verdict}", finding.name, finding.what, finding.advice)
    Console(highlight=False, soft_wrap=True).print(table)
    sys.exit(worst(findings))


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure throughput, latency, CPU and memory; `renoveasy bench --help` lists scenarios and options."""
    try:
        from benchmarks.command import main as measure
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing; `make install-dev` installs what the bench needs")
    measure.main(args=list(arguments), prog_name="renoveasy bench")


if __name__ == "__main__":
    main()
