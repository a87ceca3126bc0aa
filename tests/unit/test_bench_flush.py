"""What the bench makes up is what the platform would have written: it commits, loads and reads as such."""

from pathlib import Path

from benchmarks.load.streams import Population, fill, loads
from benchmarks.scenarios.flush import EVENTS, Traffic, flush_step
from domain.chat import CHAT, Conversation
from domain.ids import PARTITIONS
from storage.engine import Database, migrate
from storage.memory import MemoryPartitionLog
from storage.partition_log import SqlPartitionLog
from storage.read_models import SqlReadModels


async def test_made_up_flushes_follow_on_from_each_other():
    log, traffic = MemoryPartitionLog(), Traffic(1)
    heads = {p: taken.position for p, taken in (await log.take(range(PARTITIONS), "bench", 1)).items()}
    for _ in range(6):
        done = await log.commit(traffic.flush(), heads)
        assert (done.fenced, done.stale) == (frozenset(), frozenset())
        heads.update(done.heads)
    store = log.store
    assert sum(len(rows) for rows in store.streams.values()) == 6 * EVENTS
    assert store.conversations
    assert store.messages
    assert store.parties
    assert store.lines
    assert store.reminders


async def test_a_flush_is_measured_on_a_real_database(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'bench.db'}"
    for _ in range(2):  # on what the first one has left behind
        step = await flush_step(url, "sqlite", None, 0.01, None)
    assert step.flushes > 0
    assert step.events_per_s > 0
    assert step.client_cpu_ms > 0
    assert step.server_cpu_ms is None


async def test_a_made_up_population_is_in_the_database_as_if_people_had_been_there(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path / 'bench.db'}"
    await migrate(url, "bench")
    database, population = Database(url), Population(60, users=20)
    await fill(database, population)
    assert (await loads(database, population, 16, 3)).count == 3
    log = SqlPartitionLog(database)
    positions = await log.heads(range(PARTITIONS))
    assert sum(positions.values()) == sum(len(population.entries(n)) for n in range(60))
    for number in range(60):
        stream = population.stream(number)
        loaded = (await log.load([stream], {"conversation": 1}))[stream]
        assert loaded.tail == population.entries(number)
        assert 3 <= len(loaded.tail) <= 5
        state: Conversation = CHAT.initial(population.id(number))
        for entry in loaded.tail:
            state = CHAT.evolve(state, CHAT.decode_event(entry.body), entry.offset)
        assert set(state.members) == set(population.members(number))
    page = await SqlReadModels(database).conversations(population.members(7)[0], None, 10)
    assert population.id(7) in [row.id for row in page.items]
    await log.close()
    await database.close()
