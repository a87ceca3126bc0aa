"""The power goes, at any instant: what was acknowledged before is there, once and in order, and everything comes up by itself.

Killing a process shows nothing of this, since what it has written stays in the kernel's page cache. Here the store lives on a
file system of its own, the image under it is copied while everybody stands still, and a new platform starts from the copy.
"""

import asyncio
import functools
from pathlib import Path

import pytest

from tests.chaos.conftest import Chaos, needs_mariadb
from tests.support.callers import Caller, Callers, forgotten
from tests.support.disks import Disk, why_no_disks
from tests.support.oracle import Evidence, Fault, spread
from tests.support.power_loss import (
    Image,
    Verdict,
    change_schema_and_lose_power,
    cut_off_first_start,
    lose_power,
    revive,
    run_images,
)
from tests.support.stacks import STORES, Stack, StoreName, store_on

IMAGES_OF_A_RUN = 10
CONTROL_IMAGES = 3
CALLERS = 16
ANSWERS_BEFORE = 200


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> StoreName:
    if reason := why_no_disks():
        pytest.skip(f"no disks that can lose their power: {reason}")
    if request.param == "mariadb":
        needs_mariadb()
    return request.param


@pytest.mark.catalogue("R1", "power loss of the store, copied from under it while everybody stands still")
@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_survives_a_power_loss(chaos: Chaos, kind: StoreName, tmp_path: Path):
    images = chaos.repeats(short=2, full=50)
    chaos.load("64 writers, some 1,000 msg/s, by NATS to one host")
    verdicts: list[Verdict] = []
    faults: list[Fault] = []
    under_way: list[int] = []
    rates: list[float] = []
    for run, first in enumerate(range(0, images, IMAGES_OF_A_RUN)):
        taken = await run_images(kind, min(IMAGES_OF_A_RUN, images - first), seed=run, folder=tmp_path)
        rates += [image.acked_per_s for image in taken]
        under_way += [image.under_way for image in taken]
        for image in taken:
            verdict = await revive(kind, image)
            verdicts.append(verdict)
            faults += verdict.faults
            chaos.tell(f"{kind}: {len(verdicts)} of {images} images, {len(faults)} broken promises")
    chaos.record(
        images=len(verdicts),
        acked_before=sum(verdict.acked for verdict in verdicts),
        lost=sum(verdict.lost for verdict in verdicts),
        acked_per_s=spread(rates, ""),
        under_way=spread([float(number) for number in under_way], ""),
        settled_after_restart=spread([verdict.settled_s for verdict in verdicts]),
    )
    assert not faults, "\n".join(map(str, faults[:20]))
    assert sum(verdict.lost for verdict in verdicts) == 0
    assert any(under_way), "no power loss hit a write that was under way: the test shows little"


@pytest.mark.catalogue("R1b", "negative control: power loss of a store that does not sync")
@pytest.mark.timeout(300)
async def test_the_judge_sees_what_a_store_loses_that_does_not_sync(chaos: Chaos, kind: StoreName, tmp_path: Path):
    chaos.load("64 writers, some 1,000 msg/s, by NATS to one host")
    lost: list[int] = []
    while not any(lost) and len(lost) < CONTROL_IMAGES:
        [image] = await run_images(kind, 1, seed=len(lost), folder=tmp_path, synced=False)
        verdict = await revive(kind, image)
        lost.append(verdict.lost)
        assert bool(verdict.lost) == any(fault.promise == "L" for fault in verdict.faults)
    chaos.record(lost=lost)
    assert any(lost), f"nothing was synced, and {len(lost)} power losses took nothing away: they are none"


@pytest.mark.catalogue("R1", "power loss while the schema is made")
@pytest.mark.timeout(900)
async def test_a_first_start_that_lost_its_power_comes_up_the_next_time(chaos: Chaos, kind: StoreName, tmp_path: Path):
    images = chaos.repeats(short=3, full=20)
    outcomes = await cut_off_first_start(kind, images, chaos.random, tmp_path)
    chaos.record(images=len(outcomes), cut_off=sum(outcome.tables < outcome.of for outcome in outcomes))
    failed = [f"with {o.tables} of {o.of} tables: {o.error}" for o in outcomes if o.error]
    assert not failed, "\n".join(failed)


@pytest.mark.catalogue("R1", "power loss just after the schema was changed")
@pytest.mark.timeout(300)
async def test_a_changed_schema_survives_a_power_loss(chaos: Chaos, kind: StoreName, tmp_path: Path):
    """MariaDB by itself syncs the renamed definition of a changed table only by and by."""
    chaos.record(tables=await change_schema_and_lose_power(kind, tmp_path / "image"))


@pytest.mark.catalogue("R1", "power loss under REST, with a Redis and a NATS that come back empty")
@pytest.mark.timeout(900)
async def test_what_rest_has_answered_survives_with_redis_and_nats_empty(chaos: Chaos, kind: StoreName, tmp_path: Path):
    """Accounts, device sessions, refresh tokens, keys and orders: none of it rests on what keeps nothing."""
    if kind == "mariadb" and not chaos.full:
        pytest.skip("on MariaDB in the full form alone")
    images = chaos.repeats(short=1, full=10)
    chaos.load(f"{CALLERS} people who log in and out, renew tokens, change their names, make and cancel orders")
    taken: list[tuple[Image, list[Caller]]] = []
    with Disk(512) as disk:
        async with (
            Stack(disk, store_on(disk, kind), rest=True) as stack,
            Callers(stack.parts.rest, CALLERS, seed=images) as callers,
        ):
            for number in range(images):
                await callers.until_answered(ANSWERS_BEFORE)
                await asyncio.sleep(chaos.random.uniform(0.0, 0.2))
                into = tmp_path / f"{kind}-{number}.image"
                known: list[Caller] = []
                note = functools.partial(callers.tell, known)
                taken.append((await lose_power(stack, Evidence(), into, running=False, at=note), known))
    faults: list[str] = []
    for image, known in taken:
        with Disk(image=image.path) as disk:
            async with Stack(disk, store_on(disk, kind), rest=True) as stack:
                faults += await forgotten(stack.parts.rest, known)
        chaos.tell(f"{kind}: {len(faults)} things forgotten so far")
    chaos.record(
        images=images,
        answers=callers.answers,
        orders=sum(len(person.orders) for _, known in taken for person in known),
        forgotten=len(faults),
    )
    assert not faults, "\n".join(faults[:20])
