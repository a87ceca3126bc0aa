"""`renoveasy`: the command. Heavy imports wait until the command that needs them."""

import asyncio
import getpass
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click
import msgspec

from deploy.settings import Settings, SettingsError, from_environment, unknown_keys

if TYPE_CHECKING:
    from deploy.rolling import Rolling
    from domain.acts import Act
    from domain.audit import Mark, Verdict
    from storage.audit import SqlAudit
    from storage.reencryption import Reencrypted

T = TypeVar("T")

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
@click.argument("server", type=click.Choice(["nats", "redis"]))
def rights(server: str) -> None:
    """Print which role may do what on a NATS or Redis server of your own, as its configuration says it.

    Passwords are to be put in: NATS takes them from its environment. Each role's URL is RENOVEASY_NATS_URL_HOST and the
    like. The servers that `renoveasy up` starts have all of this already.
    """
    from deploy.rights import IN_REDIS, ON_THE_BROKER, nats_accounts, redis_users

    settings = settings_or_exit()
    if server == "nats":
        passwords = {role: f"$RENOVEASY_NATS_{role.upper()}_PASSWORD" for role in ON_THE_BROKER}
        click.echo(nats_accounts(passwords, settings.namespace), nl=False)
    else:
        passwords = {role: f"PASSWORD-OF-{role.upper()}" for role in IN_REDIS}
        click.echo(redis_users(passwords, settings.namespace), nl=False)


@main.command()
def migrate() -> None:
    """Bring the database's schema to the newest version; safe to repeat, and from many machines at once."""
    from deploy.keys import make_phones_secret
    from deploy.runtime import StartError
    from storage.engine import migrate as bring_up_to_date

    settings = settings_or_exit()
    url = settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}"
    try:
        version = asyncio.run(bring_up_to_date(url, secrets.token_hex(8)))
    except Exception as error:
        fail(f"the database cannot be migrated: {error}")
    try:
        asyncio.run(make_phones_secret(settings, _progress("encrypted"), always_open=False))
    except StartError as error:
        fail(str(error))
    click.echo(f"the schema is at {version}")


@main.command()
@click.argument("phone")
@click.argument("role", type=click.Choice(["ops", "admin"]))
def grant(phone: str, role: str) -> None:
    """Give the account of a phone number (+8613800000000) a role; an account is made if there is none.

    It counts from the next request on: roles come from the account, not from the token.
    """
    from deploy.connections import AUDIT_KEY, SystemClock, new_id, secret
    from deploy.keys import open_keys
    from domain.acts import OK, Deed
    from storage.accounts import SqlAccounts
    from storage.audit import SqlAudit
    from storage.engine import Database

    async def give(url: str) -> str:
        database = Database(url)
        try:
            audit = SqlAudit(database, secret(settings, AUDIT_KEY), SystemClock(), new_id)
            accounts = SqlAccounts(database, SystemClock(), new_id, await open_keys(settings, database), audit)
            user, _ = await accounts.find_or_create(phone, "en")
            act = _by_hand(Deed.ROLE_GRANTED, OK, f"user:{user.id}", role=role)
            return ", ".join((await accounts.grant(user.id, role, act)).roles)
        finally:
            await database.close()

    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", phone):
        fail(f"{phone} is not a phone number such as +8613800000000", USAGE_ERROR)
    settings = _running_or_given()
    try:
        roles = asyncio.run(give(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}"))
    except Exception as error:
        fail(f"the database cannot be used: {error}; `renoveasy migrate` makes its tables")
    click.echo(f"{phone} has the roles {roles}")


@main.command()
@click.option("--new-key", is_flag=True, help="Make a new data key first; without it, only what is left is rewritten.")
@click.option(
    "--new-index-key", is_flag=True, help="Make a new key of the blind indexes too, by which phones are found."
)
def reencrypt(new_key: bool, new_index_key: bool) -> None:
    """Rewrite personal data under the newest data key; safe while the platform runs, and to stop and repeat.

    Former data keys stay: backups need them. RENOVEASY_KEY_PROVIDER says who wraps a new one.
    """
    from deploy import runtime
    from deploy.keys import reencrypt_all
    from deploy.runtime import StartError

    given = settings_or_exit()
    running = runtime.running(given.data_dir)
    # Where the data is, the running platform knows; who is to keep its keys, whoever calls this says.
    settings = msgspec.structs.replace(given, database_url=running.settings.database_url) if running else given
    began_s = time.monotonic()
    try:
        number, done = asyncio.run(
            reencrypt_all(settings, _progress("rewritten"), new_key=new_key, new_index_key=new_index_key)
        )
    except StartError as error:
        fail(str(error))
    except Exception as error:
        fail(f"the database cannot be used: {error}; `renoveasy migrate` makes its tables")
    if done.damaged:
        for place in done.damaged[:20]:
            click.echo(f"cannot be read and was left as it is: {place}", err=True)
        fail(
            f"{len(done.damaged)} fields were changed outside of the platform; restore them from a backup "
            "(a second factor can be reset instead: `renoveasy reset-totp`)"
        )
    click.echo(f"done in {time.monotonic() - began_s:.1f} s: {done.done} rewritten, all under data key {number}")


def _progress(word: str) -> Callable[["Reencrypted"], None]:
    """Says how far it is, at most once a second."""
    told_s = time.monotonic()

    def report(progress: "Reencrypted") -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= 1:
            told_s = time.monotonic()
            click.echo(f"{progress.done} of {progress.total} {word}")

    return report


@main.command("reset-totp")
@click.argument("phone")
def reset_totp(phone: str) -> None:
    """Remove the second factor of an operator who has lost it; they set up a new one at POST /v1/auth/totp/enrol.

    Their sessions count as unverified from the next request on.
    """
    from deploy import runtime
    from deploy.connections import SystemClock, new_id
    from deploy.keys import open_keys
    from storage.accounts import SqlAccounts
    from storage.engine import Database
    from storage.user_keys import SqlTotpSecrets

    async def reset(url: str) -> bool | None:
        database = Database(url)
        try:
            keys = await open_keys(settings, database)
            user = await SqlAccounts(database, SystemClock(), new_id, keys).find(phone)
            return None if user is None else await SqlTotpSecrets(database, keys).reset(user.id)
        finally:
            await database.close()

    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", phone):
        fail(f"{phone} is not a phone number such as +8613800000000", USAGE_ERROR)
    given = settings_or_exit()
    running = runtime.running(given.data_dir)
    settings = running.settings if running else given
    try:
        done = asyncio.run(reset(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}"))
    except Exception as error:
        fail(f"the database cannot be used: {error}; `renoveasy migrate` makes its tables")
    if done is None:
        fail(f"{phone} has no account")
    click.echo(f"{phone} has no second factor any more" if done else f"{phone} had no second factor")


@main.group("audit")
def audit_group() -> None:
    """The record of every act that matters to security."""


@audit_group.command()
@click.option("--mark", "given", help="Where the record stood earlier: what this command has printed then.")
def verify(given: str | None) -> None:
    """Walk along the whole audit log and say whether anything in it was changed or removed.

    Where it ends is remembered in the data folder, beside the keys, and must still be there the next time. Keep what is
    printed in another place too, and give it with --mark: whoever can write to both cannot change that.
    """
    from deploy.connections import AUDIT_KEY, keys_folder
    from domain.audit import Mark

    settings = _running_or_given()
    folder = keys_folder(settings)
    if not (folder / AUDIT_KEY).is_file():
        fail(f"there is no {AUDIT_KEY} in {folder}: nothing was written with this data folder (RENOVEASY_DATA_DIR)")
    last = folder / "audit-mark"
    try:
        known = [Mark.read(text) for text in (given, last.read_text() if last.is_file() else None) if text]
    except ValueError:
        fail("a mark is a number, a colon and 64 hexadecimal digits", USAGE_ERROR)
    marks: list[Mark | None] = [*known] or [None]
    for mark in marks:
        try:
            verdict = asyncio.run(_verdict(settings, mark))
        except Exception as error:
            fail(f"the database cannot be used: {error}")
        if verdict.wrong:
            fail(f"the audit log was tampered with: {verdict.wrong}; it is whole up to {verdict.mark}")
    draft = last.with_name(f".audit-mark.{os.getpid()}")
    draft.write_text(f"{verdict.mark}\n")
    draft.replace(last)
    click.echo(
        f"{verdict.mark.number} acts, nothing was changed or removed. The mark to keep elsewhere: {verdict.mark}"
    )


def _running_or_given() -> Settings:
    """The settings that the platform on this data folder runs with, else those of the environment."""
    from deploy import runtime

    given = settings_or_exit()
    running = runtime.running(given.data_dir)
    return running.settings if running else given


def _by_hand(act: str, outcome: str, object: str = "", **details: str) -> "Act":
    """An act of whoever uses this command: an account of the machine."""
    from domain.acts import Act

    return Act(act, outcome, f"cli:{getpass.getuser()}", object=object, details=details)


async def _with_audit(settings: Settings, use: "Callable[[SqlAudit], Awaitable[T]]") -> "T":
    from deploy.connections import AUDIT_KEY, SystemClock, new_id, secret
    from storage.audit import SqlAudit
    from storage.engine import Database

    database = Database(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}")
    try:
        return await use(SqlAudit(database, secret(settings, AUDIT_KEY), SystemClock(), new_id))
    finally:
        await database.close()


async def _write_down(settings: Settings, act: "Act") -> None:
    await _with_audit(settings, lambda audit: audit.write(act))


async def _verdict(settings: Settings, mark: "Mark | None") -> "Verdict":
    return await _with_audit(settings, lambda audit: audit.verify(mark))


@main.command("rotate-keys")
def rotate_keys() -> None:
    """Sign access tokens with a new key from now on; those signed with the former ones stay valid."""
    from deploy.connections import keys_folder
    from domain.acts import ALLOWED, OK, Deed
    from storage.tokens import SigningKeys

    settings = _running_or_given()
    folder = keys_folder(settings)
    if not folder.is_dir():
        fail(f"there are no keys in {folder} yet: the first start makes one (RENOVEASY_DATA_DIR)")
    try:
        asyncio.run(_write_down(settings, _by_hand(Deed.KEYS_ROTATED, ALLOWED)))
    except Exception as error:
        fail(f"no key is made, because the audit log cannot be written: {error}")
    keys = SigningKeys.rotate(folder)
    asyncio.run(_write_down(settings, _by_hand(Deed.KEYS_ROTATED, OK, f"key:{keys.newest.kid}")))
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
