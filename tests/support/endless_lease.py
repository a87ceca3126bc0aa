"""A planted bug for the stale-owner test to find: a host that trusts for ever that it still owns what it has once taken."""

from actors.host import Host


def plant(role: str) -> None:
    if role == "host":
        Host.lease_fresh = lambda self: True  # type: ignore[method-assign]
