"""Schemathesis over the OpenAPI document: no 5xx, no answer that the document does not name, no bad input let in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from serve_apps.endpoint import Endpoint, Rule
from serve_apps.openapi import openapi
from serve_apps.rest import ROUTES
from tests.support.databases import migrated
from tests.support.rest_server import RestServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
EXAMPLES = 20
SCHEMA = schemathesis.openapi.from_dict(openapi(ROUTES))
ENDS_THE_SESSION = {"logout", "erase_me"}
CASES = [
    pytest.param(row, mode, id=f"{row.name}-{mode.value}")
    for row in ROUTES
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or row.body or row.query or row.ids
]
"""Every route with what the document allows, and where there is anything to send, with what it does not allow."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    folder: Path = tmp_path_factory.mktemp("schemathesis")
    with migrated("sqlite", folder) as url, RestServer(url) as running:
        yield running


@pytest.mark.parametrize(("row", "mode"), CASES)
def test_whatever_is_sent_the_answer_is_one_that_the_document_names(
    server: RestServer, row: Endpoint, mode: GenerationMode
) -> None:
    operation = SCHEMA[row.path][row.method]
    known = {name: server.ids[name] for name in row.ids}

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), logged_in=st.booleans(), existing=st.booleans())
    def send(data: Any, logged_in: bool, existing: bool) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if existing and known and mode is GenerationMode.POSITIVE:
            case.path_parameters = {**case.path_parameters, **known}
        caller = server.operator if row.rule is Rule.OPS else server.customer
        # Where the missing token is all that is wrong, giving it would make the request right.
        bad = {place.value for place, part in case.meta.components.items() if part.mode is GenerationMode.NEGATIVE}
        logged_in = logged_in and row.name not in ENDS_THE_SESSION and bad != {"header"}
        headers = caller if logged_in else {}
        case.call_and_validate(base_url=server.base_url, headers=headers, checks=CHECKS)

    send()
