"""What a person takes along."""

import msgspec
from msgspec import UNSET, UnsetType

from domain.uploads import Purpose
from serve_apps.schemas.auth import ApiKeyView, DeviceKeyView, IdentityView, SessionView
from serve_apps.schemas.common import Cursor, Point, Timestamp, Uuid
from serve_apps.schemas.conversations import BlockView
from serve_apps.schemas.orders import OrderView, TrackPoint
from serve_apps.schemas.people import Me
from serve_apps.schemas.uploads import WorkerDocumentView


class ExportedSession(SessionView, kw_only=True, omit_defaults=True):
    """A device session with all that is known of where it was last used; ended ones too.

    `last_seen_at_ip` is an address, or an IPv6 one as its /64; `last_seen_near` is right to some 10 km.
    """

    last_seen_at_ip: str | UnsetType = UNSET
    user_agent: str | UnsetType = UNSET
    last_seen_near: Point | UnsetType = UNSET
    confirmed_at: Timestamp | UnsetType = UNSET
    second_factor_at: Timestamp | UnsetType = UNSET
    device_key_id: Uuid | UnsetType = UNSET
    ended_at: Timestamp | UnsetType = UNSET


class ExportedFactor(msgspec.Struct, omit_defaults=True):
    """That there is a second factor; never its secret."""

    created_at: Timestamp
    confirmed_at: Timestamp | UnsetType = UNSET


class ExportedAccount(msgspec.Struct, omit_defaults=True):
    """The account, with its phone number in full, and how its owner gets in; of keys their names and times."""

    me: Me
    phone: str
    sessions: list[ExportedSession]
    identities: list[IdentityView]
    device_keys: list[DeviceKeyView] = []
    api_keys: list[ApiKeyView] = []
    second_factor: ExportedFactor | UnsetType = UNSET
    documents: list[WorkerDocumentView] = []


class ExportedConversation(msgspec.Struct, omit_defaults=True):
    """A conversation that the caller is or was in, and how far they are. `muted_until` is null for ever."""

    conversation_id: Uuid
    joined_offset: int
    read_offset: int
    delivered_offset: int
    left_offset: int | UnsetType = UNSET
    muted_until: Timestamp | UnsetType | None = UNSET


class ExportedTrack(msgspec.Struct):
    """Recorded positions of the caller's trips for an order."""

    order_id: Uuid
    positions: list[TrackPoint]


class ExportedMessage(msgspec.Struct, omit_defaults=True):
    """A message that the caller wrote, and everything that it has said, oldest first."""

    conversation_id: Uuid
    message_id: Uuid
    offset: int
    at: Timestamp
    texts: list[str]
    attachments: list[str] = []
    reply_to: str | UnsetType = UNSET


class ExportRequest(msgspec.Struct):
    """Nothing for the first page, then `next_cursor` of the one before."""

    cursor: Cursor | None = None


class ExportedUpload(msgspec.Struct):
    """Something that the caller has uploaded; what it holds is at `path`."""

    id: Uuid
    purpose: Purpose
    content_type: str
    bytes: int
    created_at: Timestamp
    path: str


class Export(msgspec.Struct, omit_defaults=True):
    """A page of what is stored about the caller. All pages together are the document; the last one has no `next_cursor`."""

    account: ExportedAccount | UnsetType = UNSET
    messages: list[ExportedMessage] = []
    conversations: list[ExportedConversation] = []
    orders: list[OrderView] = []
    tracks: list[ExportedTrack] = []
    blocks: list[BlockView] = []
    uploads: list[ExportedUpload] = []
    next_cursor: str | UnsetType = UNSET
