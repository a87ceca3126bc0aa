"""The gateway's settings: one frozen struct, with units and what zero means."""

import msgspec

from gateway.presence import PresenceSettings


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits hold per session unless they say otherwise. Times are seconds, sizes bytes."""

    host: str = "0.0.0.0"  # noqa: S104 - a public service
    port: int = 8080
    """0 picks a free port."""
    reuse_port: bool = True
    """Several gateways of one machine listen on the same port (SO_REUSEPORT)."""
    name: str = "gateway"
    """Sent to clients as the node's name."""
    version: str = "renoveasy"
    certificate: str = ""
    """A PEM file with the certificate and its chain; empty: no TLS."""
    certificate_key: str = ""
    certificate_look_s: float = 5
    """How often it is looked whether these files have changed."""
    origins: tuple[str, ...] = ()
    """Allowed values of a present Origin header; none are, by default. A client that sends none is let in."""

    max_sessions: int = 9_000
    """Connections of this gateway; further ones are answered 503."""
    max_connections: int = 10_000
    """Including those in their handshake; further ones are cut off at once. Each holds a file descriptor; 0 means no limit."""
    max_frame_bytes: int = 65_536
    max_depth: int = 32
    """Nesting of JSON in one frame."""
    max_subscriptions: int = 512
    max_in_flight: int = 64
    """Commands being worked on; when as many more wait, the socket is not read."""
    commands_per_s: float = 0
    """Commands a second on average, with a burst of four seconds' worth; 0 means no budget. So with the next three."""
    bytes_per_s: float = 0
    user_commands_per_s: float = 0
    """Of all connections of one user on this gateway together."""
    user_bytes_per_s: float = 0
    max_user_subscriptions: int = 2_048
    max_user_connections: int = 20
    """Of one user on this gateway; when one more comes, the oldest is closed. 0 means no limit."""

    open_timeout_s: float = 10
    """For the TLS handshake and the HTTP upgrade, or for a request's head and body."""
    keep_alive_s: int = 60
    """For the next request of an HTTP connection."""
    connect_timeout_s: float = 10
    """For the `connect` command after the upgrade."""
    ping_interval_s: float = 25
    pong_timeout_s: float = 10
    expiry_grace_s: float = 25
    """A connection outlives its token by this much, so that a refresh may be a little late."""
    close_timeout_s: float = 5
    """For the closing handshake, before the socket is cut."""
    ask_timeout_s: float = 4.5
    """For an answer of a stream's owner; less than the SDKs' own 5 s, so that they hear of an unknown outcome from us."""
    drain_s: float = 20
    """Over how long draining spreads its disconnects at most, 4 ms each: reconnects cost the other gateways a core's time."""
    handover_s: float = 5
    """How long a draining gateway keeps a connection whose client is building the next one. 0: nobody is waited for."""
    tick_s: float = 0.5
    """How often deadlines are looked at and metrics written."""

    outbound_bytes: int = 1_048_576
    """What may wait for a slow reader. Publications use half of it; beyond, they are read again when it has caught up."""
    outbound_frames: int = 4_096
    frame_target_bytes: int = 65_536
    """Replies and pushes that wait together travel in one frame of about this size."""
    write_limit_bytes: int = 32_768
    """What may lie in the transport's own buffer."""

    tail_events: int = 100
    """Recent events kept per channel, for those who come back."""
    tail_bytes: int = 65_536
    tails_bytes: int = 67_108_864
    """For all channels together."""
    linger_s: float = 30
    """A channel without subscribers is still followed for this long."""
    linger_channels: int = 1_000
    page_bytes: int = 262_144
    page_events: int = 1_000
    history_limit: int = 1_000
    recovery_reads: int = 16
    """Reads of the store at once, for the whole gateway."""
    recovery_patience_s: float = 10
    """For a store that does not show yet what the stream's owner has committed."""
    audit_s: float = 30
    """Over how long all followed streams are compared once with what their owners know; 0 means never."""
    signals: int = 10_000
    """Ephemeral items of all sessions that wait for the broker; the oldest are dropped."""
    presence: PresenceSettings = PresenceSettings()
    sync_conversations: int = 2_000
    """The latest conversations that `sync` answers with."""
    revocation_memory_s: float = 60
    """How long a revoked session id is remembered, for connects that were under way."""
    compression: bool = False
    """permessage-deflate: saves traffic, and costs three times the memory per idle session."""


def budgeted(settings: GatewaySettings) -> GatewaySettings:
    """The settings, with budgets that no person's apps reach, and a program that ignores every answer does at once."""
    return msgspec.structs.replace(
        settings, commands_per_s=20, bytes_per_s=65_536, user_commands_per_s=60, user_bytes_per_s=196_608
    )


def fitting(settings: GatewaySettings, descriptors: int) -> GatewaySettings:
    """The settings, with no more connections than leave enough of so many descriptors for the database, NATS and logs.

    Whoever knocks must never get a descriptor that the sessions' own reads and writes need.
    """
    places = descriptors - max(64, descriptors // 8)
    if 0 < settings.max_connections <= places:
        return settings
    sessions = min(settings.max_sessions, places - places // 10)
    return msgspec.structs.replace(settings, max_connections=places, max_sessions=sessions)
