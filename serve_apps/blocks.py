"""Users whom the caller wants to hear no more from.

The row of the block is the truth. Every conversation of the two is told by a command whose id depends on the row alone, so
a request that could not tell all of them is completed by repeating it.
"""

import asyncio
from typing import Final

from domain.errors import RETRYABLE, Code, Refusal, invalid
from domain.ids import derived_uuid7
from domain.ports import Block
from domain.times import rfc3339
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.schemas.common import Items, Listing, clamped
from serve_apps.schemas.conversations import BlockView

_LIST_MOST: Final = 100
_AT_ONCE: Final = 8
_ROUNDS: Final = 4


@endpoint("GET", "/v1/blocks", tag="people", rule=Rule.OWNER)
async def list_blocks(call: Call, query: Listing) -> Items[BlockView]:
    """The users whom the caller has blocked, latest first."""
    limit = clamped(query.limit, _LIST_MOST)
    page = await call.services.blocks.list_of(call.caller.user_id, query.cursor, limit)
    return Items([block_view(block) for block in page.items], page.next_cursor)


@endpoint("PUT", "/v1/blocks/{user_id}", tag="people", rule=Rule.OWNER)
async def block_user(call: Call, user_id: str) -> BlockView:
    """Block a user: their messages to the caller are refused from now on.

    `unavailable`: the block stands, but not every conversation knows of it yet; repeat the request.
    """
    caller_id = call.caller.user_id
    if user_id == caller_id:
        raise invalid("user_id", "invalid", "nobody blocks themselves")
    if user_id not in await call.services.accounts.get([user_id]):
        raise Refusal(Code.NOT_FOUND)
    block = await call.services.blocks.block(caller_id, user_id, call.now_ms())
    return block_view(await _carry(call, block))


@endpoint("DELETE", "/v1/blocks/{user_id}", tag="people", rule=Rule.OWNER, status=204)
async def unblock_user(call: Call, user_id: str) -> None:
    """End a block; nothing happens where there is none. `unavailable` as for blocking."""
    block = await call.services.blocks.unblock(call.caller.user_id, user_id, call.now_ms())
    if block is not None:
        await _carry(call, block)


def block_view(block: Block) -> BlockView:
    return BlockView(block.blocked_id, rfc3339(block.at))


async def _carry(call: Call, block: Block) -> Block:
    """Tell the conversations of the two, until the row is still what they were told; how it stands then.

    Of two requests that contradict each other the later one may have told a conversation first. The other one finds the
    row changed when it is done, and tells what the row says, under an id that no conversation has seen yet.
    """
    for _ in range(_ROUNDS):
        await _tell(call, block)
        now = await call.services.blocks.renew(block, call.now_ms())
        if now == block:
            return block
        block = now
    raise Refusal(Code.UNAVAILABLE, "the block is being changed by other requests: repeat this one")


async def _tell(call: Call, block: Block) -> None:
    # Only a conversation of two refuses messages, and only there is it nobody else's business. A block that was carried
    # before somebody joined is ended all the same.
    shared = await call.services.blocks.shared(block.blocker_id, block.blocked_id, alone=block.active)
    seats = asyncio.Semaphore(_AT_ONCE)

    async def one(conversation_id: str) -> None:
        async with seats:
            await _command(call, block, conversation_id)

    told = await asyncio.gather(*(one(conversation_id) for conversation_id in shared), return_exceptions=True)
    failed = [outcome for outcome in told if isinstance(outcome, BaseException)]
    for failure in failed:
        if not isinstance(failure, Refusal) or failure.code not in RETRYABLE:
            raise failure
    if failed:
        raise Refusal(
            Code.UNAVAILABLE, f"{len(failed)} of {len(shared)} conversations do not know of it yet: repeat the request"
        )


async def _command(call: Call, block: Block, conversation_id: str) -> None:
    name = "block" if block.active else "unblock"
    seed = f"{name}/{block.blocker_id}/{block.blocked_id}/{conversation_id}"
    command_id = derived_uuid7(block.at, seed, like=conversation_id)
    try:
        await call.command("conversation", conversation_id, name, command_id, {"user_id": block.blocked_id})
    except Refusal as refusal:
        if refusal.code != Code.NOT_FOUND:
            raise
        # The caller has left it a moment ago.


ENDPOINTS: tuple[Endpoint, ...] = (list_blocks, block_user, unblock_user)
