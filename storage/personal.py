"""Of every table: what of it a person gets with their export, and what an erasure leaves of it.

A table that is in neither list fails `tests/contract/test_personal.py`, and so does one whose promise does not hold.
"""

from typing import Final

EXPORTED: Final[dict[str, str]] = {
    "user": "account.me",
    "device_session": "account.sessions",
    "device_key": "account.device_keys",
    "api_key": "account.api_keys",
    "totp_secret": "account.second_factor",
    "linked_identity": "account.identities",
    "partition_log": "messages",
    "message_change": "messages",
    "conversation_member": "conversations",
    "conversation_mute": "conversations",
    "order_party": "orders",
    "track_position": "tracks",
    "user_block": "blocks",
    "upload": "uploads",
    "worker_document": "account.documents",
}
"""Where in the export it stands."""

NOT_EXPORTED: Final[dict[str, str]] = {
    "stream_state": "made of the partition log again at any time",
    "conversation": "the last message once more",
    "message_index": "the words of messages once more, for searching",
    "message_index_cursor": "how far the index is",
    "reminder": "when an order does something by itself; follows from the order",
    "claim": "times that an order's visits take up; follows from the order",
    "ledger_posting": "the platform's books: what a person paid or got is in their orders",
    "upload_use": "which messages, orders and documents name an upload; follows from them",
    "refresh_token": "hashes of secrets; the sessions are exported",
    "erasure": "whose row there is has no account to export",
    "audit": "kept to show who did what, for the platform's security; disclosed by operators on request",
    "audit_head": "where the audit log ends",
    "audit_base": "where the audit log begins",
    "data_key": "nobody's: keys of the platform",
    "setting": "nobody's: settings of the platform",
    "relay_cursor": "nobody's: how far events are published",
}
"""Why not."""

ERASED: Final[dict[str, tuple[str, ...]]] = {
    "device_session": ("user_id",),
    "device_key": ("user_id",),
    "api_key": ("user_id",),
    "totp_secret": ("user_id",),
    "linked_identity": ("user_id",),
    "user_block": ("blocker_id",),
    "conversation_mute": ("user_id",),
    "refresh_token": ("session_id",),
    "track_position": ("order_id",),
    "message_index": ("message_id",),
    "upload": ("owner_id",),
    "upload_use": ("upload_id",),
    "worker_document": ("worker_id",),
}
"""No row is left that names the person, one of their sessions, messages or uploads, or an order that they drove to, here."""

KEPT: Final[dict[str, str]] = {
    "user": "the id and when the account was made: others' orders and conversations name it",
    "partition_log": "events stay, without what the person wrote; orders are what both parties agreed on",
    "stream_state": "made of the partition log, and overwritten by each deletion",
    "message_change": "that a message was deleted, and reactions to it",
    "conversation": "the last message, overwritten where it was the person's",
    "conversation_member": "the id alone: the conversation is the others' too",
    "message_index_cursor": "how far the index is",
    "order_party": "the id alone: the order is the other party's too",
    "ledger_posting": "books must be kept; ids and amounts alone",
    "reminder": "of orders, and none is left when they are over",
    "claim": "of orders, and none is left when they are over",
    "erasure": "that there was one, and when: the id alone",
    "audit": "ids and addresses, sealed; rows go when they are old enough (`RENOVEASY_AUDIT_KEEP_DAYS`)",
    "audit_head": "where the audit log ends",
    "audit_base": "where the audit log begins",
    "data_key": "nobody's",
    "setting": "nobody's",
    "relay_cursor": "nobody's",
}
"""Why it stays."""
