"""`renoveasy`: the command. Heavy imports wait until the command that needs them."""

import asyncio
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

import click

from deploy.settings import Settings, SettingsError, from_environment, unknown_keys

if TYPE_CHECKING:
    from deploy.rolling import Rolling

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
    """Show the processes of the running platform: role, name, pid, ports; and what each host owns.

    A host that is not heard within a second is shown without what it owns.
    """
    from deploy import registry, runtime

    settings = settings_or_exit()
    running = runtime.running(settings.data_dir)
    found = registry.processes(settings) if running else []
    if running:
        from deploy.census import with_hosts

        found = asyncio.run(with_hosts(running.settings, found))
    if as_json:
        click.echo(json.dumps(found))
    for process in () if as_json else found:
        ports = [f"{name}={port}" for name, port in process["ports"].items()]
        known = [f"{key}={process[key]}" for key in process if key not in ("role", "name", "pid", "ports")]
        click.echo(f"{process['role']:<12}{process['name']:<16}{process['pid']:<9}{' '.join(ports + known)}")
    if not running:
        fail(f"no platform runs on the data folder {settings.data_dir} (RENOVEASY_DATA_DIR)")


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all-hosts", is_flag=True, help="Every host, one after the other.")
@click.option("--all-gateways", is_flag=True, help="Every gateway, one after the other.")
@click.option("--rolling", "everything", is_flag=True, help="Every host, then every gateway.")
@click.option("--for-good", is_flag=True, help="Remove instead of replacing.")
def drain(names: tuple[str, ...], all_hosts: bool, all_gateways: bool, everything: bool, for_good: bool) -> None:
    """Replace parts of the running platform (host-0, gateway-1, placement ...) by fresh processes, one at a time.

    A host hands over its partitions, a gateway asks its sessions to reconnect; then the process ends, and the next part
    follows when the replacement works. Nobody's command fails.
    """

    async def work(at: "Rolling") -> str:
        chosen = [*names]
        for role, wanted in (("host", all_hosts or everything), ("gateway", all_gateways or everything)):
            chosen += [name for name in await at.names(role) if wanted and name not in chosen]
        await at.check(chosen)
        for name in chosen:
            await (at.remove(name) if for_good else at.replace(name))
        return f"{len(chosen)} {'removed' if for_good else 'replaced'}"

    if not (names or all_hosts or all_gateways or everything):
        fail(
            "name what to drain, or say --all-hosts, --all-gateways or --rolling; `renoveasy ps` lists names",
            USAGE_ERROR,
        )
    _roll(work)


@main.command()
@click.option("--hosts", type=click.IntRange(1, 256), help="How many hosts there are to be.")
@click.option("--gateways", type=click.IntRange(1, 256), help="How many gateways there are to be.")
def scale(hosts: int | None, gateways: int | None) -> None:
    """Add or remove hosts and gateways of the running platform, until its next start.

    RENOVEASY_HOSTS and RENOVEASY_GATEWAYS say how many a start begins with.
    """

    async def work(at: "Rolling") -> str:
        await at.check([])
        if hosts is not None:
            await at.scale("host", hosts)
        if gateways is not None:
            await at.scale("gateway", gateways)
        return f"{len(await at.names('host'))} hosts, {len(await at.names('gateway'))} gateways"

    if hosts is None and gateways is None:
        fail("say --hosts N, --gateways N or both", USAGE_ERROR)
    _roll(work)


def _roll(work: Callable[["Rolling"], Awaitable[str]]) -> None:
    """Do the work on the running platform and say how it went and what to do next; code 1 when it got stuck."""
    from deploy import runtime

    settings = settings_or_exit()
    running = runtime.running(settings.data_dir)
    if running is None or running.state != "ready":
        fail(f"no platform is ready on the data folder {settings.data_dir} (RENOVEASY_DATA_DIR)")
    from deploy.ray_local import enter_environment

    enter_environment(running.settings, running.token)
    from deploy.rolling import Stuck, rolling

    async def run(settings: Settings, token: str) -> str:
        async with rolling(settings, token, click.echo) as at:
            return await work(at)

    began_s = time.monotonic()
    try:
        done = asyncio.run(run(running.settings, running.token))
    except Stuck as error:
        fail(str(error))
    click.echo(f"done in {time.monotonic() - began_s:.1f} s: {done}; `renoveasy ps` shows who owns what now")


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
@click.argument("phone")
@click.argument("role", type=click.Choice(["ops", "admin"]))
def grant(phone: str, role: str) -> None:
    """Give the account of a phone number (+8613800000000) a role; an account is made if there is none.

    It counts from the next request on: roles come from the account, not from the token.
    """
    from deploy import runtime
    from deploy.connections import SystemClock, new_id
    from storage.accounts import SqlAccounts
    from storage.engine import Database

    async def give(url: str) -> str:
        database = Database(url)
        try:
            accounts = SqlAccounts(database, SystemClock(), new_id)
            user, _ = await accounts.find_or_create(phone, "en")
            return ", ".join((await accounts.grant(user.id, role)).roles)
        finally:
            await database.close()

    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", phone):
        fail(f"{phone} is not a phone number such as +8613800000000", USAGE_ERROR)
    given = settings_or_exit()
    running = runtime.running(given.data_dir)
    settings = running.settings if running else given
    try:
        roles = asyncio.run(give(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}"))
    except Exception as error:
        fail(f"the database cannot be used: {error}; `renoveasy migrate` makes its tables")
    click.echo(f"{phone} has the roles {roles}")


@main.command("rotate-keys")
def rotate_keys() -> None:
    """Sign access tokens with a new key from now on; those signed with the former ones stay valid."""
    from deploy.connections import keys_folder
    from storage.tokens import SigningKeys

    folder = keys_folder(settings_or_exit())
    if not folder.is_dir():
        fail(f"there are no keys in {folder} yet: the first start makes one (RENOVEASY_DATA_DIR)")
    keys = SigningKeys.rotate(folder)
    click.echo(
        f"key {keys.newest.kid} signs from now on; running processes know it already. When the former tokens have "
        f"expired, in a quarter of an hour, delete the older files signing-*.pem in {folder}"
    )


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
    running = runtime.running(settings.data_dir)
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
        table.add_column(column, overflow="fold")
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
