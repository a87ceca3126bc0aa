"""`renoveasy demo`: customers and workers play the whole story against a running platform, live in the terminal."""

import asyncio
import secrets
import sys
import time
from collections.abc import Callable
from typing import Final

import click
import httpx
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.ledger import Ledger, quantile
from deploy.person import Addresses, StoryError
from deploy.settings import Settings
from deploy.story import Scene, Script, Story

_FRAMES_PER_S: Final = 8
_CHAT_LINES: Final = 6
_ROAD_CELLS: Final = 24
_PANEL_WIDTH: Final = 56
_REQUEST_LIMIT_S: Final = 8.0


class NotRunning(Exception):
    """No platform that can play the demo answers; the text says what to do."""


def addresses_of(settings: Settings) -> Addresses:
    """Where a platform with these settings answers on this machine."""
    certificates = tuple(path for path in (settings.http_tls_certificate, settings.ws_tls_certificate) if path)
    return Addresses(settings.rest_address, settings.ws_address, certificates)


def run_demo(addresses: Addresses, pairs: int = 2, fast: bool = False, seed: int | None = None) -> int:
    """Play `pairs` stories at once and say what happened. 0: all went well; 1: not, and the text says what."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        return asyncio.run(_play(console, addresses, pairs, fast, secrets.randbits(24) if seed is None else seed))
    except NotRunning as error:
        click.echo(f"error: {error}", err=True)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    return 1


def script_of(seed: int, fast: bool) -> Script:
    """One pair's part: about 25 s to watch, or about 5 s."""
    if fast:
        return Script(seed=seed, chatter=1, fixes=14, fix_s=0.25, speed_mps=40.0)
    return Script(seed=seed, chatter=2, talk_s=0.7, fixes=24, fix_s=0.5, speed_mps=35.0)


async def _play(console: Console, addresses: Addresses, pairs: int, fast: bool, seed: int) -> int:
    limits = httpx.Limits(max_connections=4 * pairs + 4)
    verify = addresses.trusting() or True
    async with httpx.AsyncClient(timeout=_REQUEST_LIMIT_S, limits=limits, trust_env=False, verify=verify) as http:
        await _answering(http, addresses)
        ledger = Ledger()
        stories = [
            Story(http, addresses, script_of(seed + n, fast), ledger, _teller(console, n + 1)) for n in range(pairs)
        ]
        started = time.perf_counter()
        tasks = [asyncio.create_task(story.run(), name=f"story-{n}") for n, story in enumerate(stories, 1)]
        try:
            if console.is_terminal:
                await _show(console, tasks, [story.scene for story in stories])
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, StoryError):
            raise end
    console.print(_summary(ledger, stories, time.perf_counter() - started))
    for story, end in zip(stories, ends, strict=True):
        if end is not None:
            console.print(Text(f"{story.scene.outcome}: {end}", style="bold red"))
    if any(ends):
        return 1
    console.print("[green]all went well[/]")
    console.print(
        f"next: look at the API in {addresses.rest}/schema, or play more at once with renoveasy demo --pairs 10"
    )
    return 0


async def _answering(http: httpx.AsyncClient, addresses: Addresses) -> None:
    try:
        ready = await http.get(f"{addresses.rest}/health/ready")
        outbox = await http.get(f"{addresses.rest}/dev/outbox", params={"limit": 1})
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise NotRunning(
            f"no platform answers at {addresses.rest} ({reason}); start one with `make up` or `renoveasy up`; "
            "one with other settings is found by its RENOVEASY_DATA_DIR"
        ) from None
    if ready.status_code != 200:
        raise NotRunning(f"what answers at {addresses.rest} is not ready: {ready.status_code} at /health/ready")
    if outbox.status_code != 200:
        raise NotRunning(
            f"the platform at {addresses.rest} does not show its outbox, where the demo reads login codes: "
            "start it with RENOVEASY_ENV=dev"
        )


def _teller(console: Console, n: int) -> Callable[[str], None]:
    """Writes a line for everything that happens where no terminal can show it live."""
    if console.is_terminal:
        return lambda line: None
    return lambda line: console.print(f"pair {n}: {line}", markup=False)


# --- what is shown -----------------------------------------------------------------------------------------------


async def _show(console: Console, tasks: list[asyncio.Task[None]], scenes: list[Scene]) -> None:
    with Live(_stage(scenes), console=console, refresh_per_second=_FRAMES_PER_S) as live:
        while any(not task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=1 / _FRAMES_PER_S)
            live.update(_stage(scenes))


def _stage(scenes: list[Scene]) -> Columns:
    return Columns([_panel(scene) for scene in scenes], padding=(0, 1))


def _panel(scene: Scene) -> Panel:
    lines = [Text.assemble(("order ", "dim"), scene.title or "-"), Text.assemble(("state ", "dim"), _state_of(scene))]
    lines += [_road(scene), Text()]
    lines += [Text.assemble((f"{name}: ", _colour_of(scene, name)), text) for name, text in scene.chat[-_CHAT_LINES:]]
    lines += [Text()] * max(0, _CHAT_LINES - len(scene.chat))
    lines.append(Text(f"{scene.typing} is typing" if scene.typing and not scene.outcome else "", style="dim italic"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    colour = {"": "cyan", "done": "green"}.get(scene.outcome, "red")
    title = f"{scene.customer} (customer) and {scene.worker} (worker)"
    return Panel(
        Group(*lines), title=title, subtitle=scene.outcome or scene.step, width=_PANEL_WIDTH, border_style=colour
    )


def _state_of(scene: Scene) -> Text:
    return Text.assemble((scene.state, "bold"), (f"  version {scene.version}", "dim"))


def _road(scene: Scene) -> Text:
    """The way to the site, as the customer sees it."""
    if scene.left_m is None or not scene.trip_m:
        return Text("the worker has not set out", style="dim")
    if scene.left_m == 0:
        return Text.assemble(("━" * (_ROAD_CELLS + 1), "yellow"), ("▣ ", "bold"), "at the site")
    done = round(_ROAD_CELLS * (1 - min(1.0, scene.left_m / scene.trip_m)))
    eta = f", {scene.eta_s:.0f} s" if scene.eta_s is not None else ""
    road = "━" * done + "●" + "─" * (_ROAD_CELLS - done)
    return Text.assemble((road, "yellow"), ("▣ ", "bold"), f"{scene.left_m:.0f} m{eta}")


def _colour_of(scene: Scene, name: str) -> str:
    return {scene.customer: "bold magenta", scene.worker: "bold blue"}.get(name, "dim")


def _summary(ledger: Ledger, stories: list[Story], took_s: float) -> Table:
    """What happened, in numbers."""
    done = sum(story.scene.outcome == "done" for story in stories)
    rows = {
        "stories": f"{done} of {len(stories)} from login to rating, in {took_s:.1f} s",
        "messages": f"{len(ledger.messages)} sent and acknowledged, {len(ledger.delivery_s)} delivered",
        "order transitions": f"{len(ledger.transitions)}",
        "writes": f"{ledger.entries['rest']} by REST, {ledger.entries['ws']} by WebSocket",
        "positions seen": f"{ledger.positions}",
        "acknowledgement": _latency(ledger.ack_s),
        "delivery": _latency(ledger.delivery_s),
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _latency(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"p50 {quantile(seconds, 0.5) * 1000:.1f} ms, p99 {quantile(seconds, 0.99) * 1000:.1f} ms"
