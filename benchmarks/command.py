"""The options of `renoveasy bench`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from benchmarks import machine
from benchmarks.run import SCENARIOS, Plan, bench
from deploy.settings import SettingsError, from_environment

RESULTS: Final = Path(__file__).parent / "results"


def _numbers(_context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise click.BadParameter("whole numbers with commas between them", param=parameter) from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenarios", nargs=-1, type=click.Choice(SCENARIOS))
@click.option("--quick", is_flag=True, help="A first look: one short round, fewer users and rates.")
@click.option("--rounds", type=click.IntRange(1, 20), help="Each with a new platform.  [default: 3]")
@click.option("--rates", callback=_numbers, help="B1: messages a second.  [default: 100,500,1000,2000]")
@click.option("--seconds", type=click.FloatRange(1, 600), help="B1: length of each rate.  [default: 4]")
@click.option("--pairs", type=click.IntRange(1, 8_000), help="B1: conversations.  [default: 500]")
@click.option("--sessions", type=click.IntRange(100, 9_000), help="B3: sessions.  [default: 1000]")
@click.option("--hold", type=click.FloatRange(0, 600), default=1.0, show_default=True,
              help="B3: seconds of idleness; CPU is told from 25 on.")  # fmt: skip
@click.option("--connections", type=click.IntRange(3, 1_000), default=64, show_default=True, help="B6: connections.")
@click.option("--database", type=click.Choice(("sqlite", "mariadb")), default="sqlite", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="A setting of the platform without RENOVEASY_, such as hosts=1.")  # fmt: skip
@click.option("--flush-seconds", type=click.FloatRange(1, 600), help="flush: length.  [default: 5]")
@click.option("--database-url", default="",
              help="flush: a database that runs already; rows are added to it that mean nothing.")  # fmt: skip
@click.option("--profile", default="", type=click.Path(dir_okay=False),
              help="flush: where py-spy puts a profile: a flame graph for .svg, else its raw format.")  # fmt: skip
@click.option("--url", default="", help="Measure a platform that runs already, such as http://127.0.0.1:8000.")
@click.option("--ws-url", default="", help="Its WebSocket, where that is not known from its data folder.")
@click.option("--server-cpus", callback=_numbers, help="Processors of all servers.  [default: the first]")
@click.option("--generator-cpus", callback=_numbers, help="Processors of the load generator.  [default: the second]")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where databases are put.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, show_default=False,
              help="Where results are kept.  [default: benchmarks/results]")  # fmt: skip
def main(
    scenarios: tuple[str, ...], quick: bool, rounds: int | None, rates: tuple[int, ...] | None, seconds: float | None,
    pairs: int | None, sessions: int | None, hold: float, connections: int, database: str, settings: tuple[str, ...],
    flush_seconds: float | None, database_url: str, profile: str,
    url: str, ws_url: str, server_cpus: tuple[int, ...] | None, generator_cpus: tuple[int, ...] | None,
    folder: Path | None, results: Path,
) -> None:  # fmt: skip
    """Measure SCENARIOS: flush, idle (B3), chat (B1), rest (B6); all of them by default.

    Each round starts a platform of its own on an empty database, all its servers on one processor, and measures it from
    another; about 5 minutes, or 90 s with --quick. What the figures mean is in docs/benchmarks.md.
    """
    if sys.platform != "linux":
        raise click.ClickException("the bench needs Linux")
    if url and (not scenarios or {"idle", "flush"} & set(scenarios)):
        scenarios = tuple(name for name in scenarios or SCENARIOS if name not in ("idle", "flush"))
        click.echo("B3 and flush are left out: memory is only compared on a platform that has held no sessions yet,")
        click.echo("and flushes are measured without a platform")
    try:
        known = from_environment()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    plan = Plan(
        scenarios=tuple(dict.fromkeys(scenarios or SCENARIOS)),
        rounds=rounds or (1 if quick else 3),
        rates=tuple(float(rate) for rate in sorted(rates or ((100, 1_000) if quick else (100, 500, 1_000, 2_000)))),
        chat_s=seconds or (3.0 if quick else 4.0),
        pairs=pairs or (100 if quick else 500),
        sessions=sessions or (300 if quick else 1_000),
        hold_s=hold,
        connections=connections,
        rest_s=2.0 if quick else 2.5,
        flush_s=flush_seconds or (2.0 if quick else 5.0),
        floors_s=1.0 if quick else 1.5,
        database=database,
        database_url=database_url,
        profile=profile,
        platform=dict(_pair(text) for text in settings),
        url=url,
        ws_url=ws_url,
        server_cpus=server_cpus if server_cpus is not None else _processors()[0],
        generator_cpus=generator_cpus if generator_cpus is not None else _processors()[1],
        folder=str((folder or _data_folder()).resolve()),
        results=str(results.resolve()),
    )
    if not plan.scenarios:
        raise click.ClickException("there is nothing to measure")
    sys.exit(bench(plan, known))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.ClickException(f"--set {text} is not KEY=VALUE")
    return key.lower(), value


def _processors() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Servers' and generator's; none where there are not two."""
    usable = sorted(os.sched_getaffinity(0))
    return ((usable[0],), (usable[1],)) if len(usable) > 1 else ((), ())


def _data_folder() -> Path:
    """A temporary folder on a real disk; the folder `var` here where there is none."""
    temporary = Path(tempfile.gettempdir())
    return temporary if machine.filesystem(temporary) not in ("tmpfs", "ramfs", "overlay") else Path("var")
