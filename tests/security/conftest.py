"""Attacks on the real parts, made of the tables of routes and methods. Sampled in `make test`, all with `RENOVEASY_CHAOS=full`.

How many hostile cases were tried is printed at the end of the session: see `tests/conftest.py`.
"""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.security.city import City
from tests.support.databases import migrated

FULL_FORM = os.environ.get("RENOVEASY_CHAOS") == "full"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a module that share a city share its event loop."""
    for item in items:
        if "city" in getattr(item, "fixturenames", ()) and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest.fixture
def full() -> bool:
    """Whether everything is to be tried, however long it takes."""
    return FULL_FORM


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated("sqlite", tmp_path_factory.mktemp("city")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def city(url: str) -> AsyncIterator[City]:
    async with City(url) as made:
        await made.settle()
        yield made
