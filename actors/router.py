"""Requests on their way to whichever host owns their partition: retried with the same id, within a deadline."""

import asyncio
from typing import Final

import msgspec

from domain.channels import command_subject, stream_partition
from domain.commands import Answer, Command, Compare, Query, Signal, partition_asked
from domain.errors import Code, Refusal, Refused
from domain.ports import Broker, BrokerUnavailable, Clock, Metrics, NoResponders, RequestTimeout

FIRST_WAIT_S: Final = 0.25
"""An attempt without an answer is repeated after this, and then after half as long again each time, up to
`LONGEST_WAIT_S`: one second after a host has hung its partitions have a new owner, and requests should find it soon."""
LONGEST_WAIT_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.02
"""The pause after a partition was found without an owner; it grows up to `LONGEST_PAUSE_S`, slowly at first: a planned
handoff is over in a few of them."""
PAUSE_GROWTH: Final = 1.3
LONGEST_PAUSE_S: Final = 0.2


class BrokerRouter:
    """`domain.ports.Router` by request/reply over the broker. Nobody needs a table: the subject follows from the id."""

    def __init__(self, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

    async def ask(self, request: Command | Query | Compare, timeout_s: float = 5.0) -> Answer:
        deadline_s = self._clock.monotonic_s() + timeout_s
        subject = command_subject(partition_asked(request))
        wait_s, pause_s = FIRST_WAIT_S, FIRST_PAUSE_S
        why = "the partition has no owner"
        while (left_s := deadline_s - (now_s := self._clock.monotonic_s())) > 0:
            sent = msgspec.structs.replace(request, sent_ms=int(now_s * 1000), wait_ms=max(1, int(left_s * 1000)))
            data = self._encoder.encode(sent)
            try:
                answer = self._decoder.decode(await self._broker.request(subject, data, min(wait_s, left_s)))
            except RequestTimeout:
                why = "no answer came"
                wait_s = min(1.5 * wait_s, LONGEST_WAIT_S)
                self._metrics.count("requests_repeated")
                continue
            except (NoResponders, BrokerUnavailable) as error:
                why = str(error) or why
            else:
                if not isinstance(answer, Refused):
                    return answer
                if answer.code is not Code.FENCED:
                    raise Refusal.of(answer)
                why = answer.detail
                pause_s = max(pause_s, answer.retry_after_s or 0.0)
            await asyncio.sleep(min(pause_s, max(0.0, deadline_s - self._clock.monotonic_s())))
            pause_s = min(PAUSE_GROWTH * pause_s, LONGEST_PAUSE_S)
        raise Refusal(
            Code.UNAVAILABLE,
            f"no answer within {timeout_s:g} s ({why}); the outcome is unknown, ask again with the same id",
            retry_after_s=1.0,
        )

    async def signal(self, signal: Signal) -> None:
        try:
            await self._broker.publish(
                command_subject(stream_partition(signal.stream_id)), self._encoder.encode(signal)
            )
        except BrokerUnavailable:
            self._metrics.count("signals_lost")
