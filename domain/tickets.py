"""Tickets: what stands in for an access token where only a URL can carry one.

URLs end up in the logs of every proxy on the way. A ticket that is read there is of no use: it opens one connection, once,
within half a minute, and nothing else.
"""

from typing import Final

TICKET_PREFIX: Final = "ticket."
"""What every ticket begins with, and no access token."""
TICKET_TTL_S: Final = 30


def is_ticket(token: str) -> bool:
    """Whether the token claims to be a ticket; if it is one, its signature says."""
    return token.startswith(TICKET_PREFIX)
