"""What operators command over the WebSocket goes into the audit log, in the words of REST: before it happens, or not at all."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from domain.access import Rule, admits
from domain.acts import ALLOWED, Act, ops_act, outcome_of
from domain.audit import AuditLog
from domain.commands import Command, Query
from domain.devices import require_second_factor
from domain.order_table import OPS_COMMANDS
from domain.ports import Clock, Metrics, SessionSource, StoreUnavailable

log = logging.getLogger("renoveasy.gateway")


class OpsActs:
    """Writes down commands that an order takes from operators, where it is an operator who gives them."""

    def __init__(
        self, audit: AuditLog, sessions: SessionSource, metrics: Metrics, clock: Clock, second_factor: bool
    ) -> None:
        """`sessions` is asked for every such command: roles come from the account as it is now.

        `second_factor`: operators must have verified their sessions by one.
        """
        self._audit = audit
        self._sessions = sessions
        self._metrics = metrics
        self._clock = clock
        self._second_factor = second_factor

    @asynccontextmanager
    async def written(self, request: Command | Query, ip: str) -> AsyncIterator[None]:
        """The request's execution goes inside. Nothing is done for whatever is no operator's act.

        Raises:
            StoreUnavailable: it cannot be written down; nothing has happened.
            Refusal: `step_up_required` for an operator without a second factor.
        """
        act = await self._act(request, ip)
        if act is None:
            yield
            return
        await self._audit.write(act)
        try:
            yield
        except BaseException as error:
            await self._write_after(msgspec.structs.replace(act, outcome=outcome_of(error)))
            raise

    async def _act(self, request: Command | Query, ip: str) -> Act | None:
        if not isinstance(request, Command) or request.kind != "order" or request.name not in OPS_COMMANDS:
            return None
        actor = request.actor
        session = await self._sessions.get(actor.session_id)
        if session is None or not admits(Rule.OPS, session.roles):
            return None
        if self._second_factor:
            require_second_factor(session, self._clock.now_ms())
        name, done_to = ops_act(f"order.{request.name}"), f"order:{request.stream_id}"
        return Act(name, ALLOWED, actor.id, actor.session_id, ip, done_to)

    async def _write_after(self, act: Act) -> None:
        try:
            await self._audit.write(act)
        except StoreUnavailable as error:
            self._metrics.count("audit_lost")
            log.error("an act is missing in the audit log: %s %s: %s", act.act, act.outcome, error)
