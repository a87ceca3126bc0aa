"""Finding messages of a conversation by what they say."""

from domain.search import wanted
from serve_apps.chat import message_view
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.schemas.common import Items, clamped
from serve_apps.schemas.conversations import MessageView, SearchQuery
from serve_apps.streams import attach, page_of

_MOST = 100


@endpoint(
    "GET",
    "/v1/conversations/{conversation_id}/messages/search",
    tag="conversations",
    rule=Rule.MEMBER,
    stream="conversation",
)
async def search_messages(call: Call, query: SearchQuery, conversation_id: str) -> Body[Items[MessageView]]:
    """Messages that hold every word of `q`, newest first.

    A word of three letters or more finds every word that begins with it, a shorter one is found whole; Chinese is found
    wherever it stands. A page may hold fewer messages than `limit`, or none, and still have a `next_cursor`.
    """
    await attach(call, "conversation", conversation_id)
    limit = clamped(query.limit, _MOST)
    page = await call.services.search.find(conversation_id, wanted(query.q), query.cursor, limit)
    return Body(page_of((message_view(row, call.caller.user_id) for row in page.items), page.next_cursor))


ENDPOINTS: tuple[Endpoint, ...] = (search_messages,)
