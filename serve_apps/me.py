"""The caller's own account, and how they become a worker."""

from msgspec import UNSET

from domain.aggregate import WorkerProfile
from domain.ports import User
from domain.times import rfc3339
from domain.verification import is_verified
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.schemas.common import Money, Point
from serve_apps.schemas.people import Me, MePatch, Rating, WorkerPut, WorkerView


def masked(phone: str) -> str:
    """A phone number with its middle hidden: the first three and the last two characters stay."""
    return phone[:3] + "*" * max(0, len(phone) - 5) + phone[-2:]


def rating_of(user: User) -> Rating:
    """The mean of all stars to two decimals, and how many there are."""
    mean = round(user.rating_sum / user.rating_count, 2) if user.rating_count else None
    return Rating(mean, user.rating_count)


def money_of(profile: WorkerProfile) -> Money:
    return Money(profile.hourly_rate, profile.currency)


def _worker_view(profile: WorkerProfile) -> WorkerView:
    base = Point(profile.base_lat, profile.base_lon)
    return WorkerView(list(profile.skills), base, profile.radius_m, money_of(profile), profile.bio)


def verified(call: Call, user: User, profile: WorkerProfile) -> bool:
    """Whether operations vouch for the worker now."""
    policy = call.services.orders.policy
    return is_verified(profile.skills, user.identity_until, user.licences, policy, call.now_ms())


def me_view(call: Call, user: User) -> Me:
    """An account as its owner sees it."""
    return Me(
        id=user.id,
        phone=masked(user.phone),
        name=user.name,
        locale=user.locale,
        roles=list(user.roles),
        created_at=rfc3339(user.created_at),
        avatar=UNSET if user.avatar is None else user.avatar,
        worker=UNSET if user.worker is None else _worker_view(user.worker),
        verified=UNSET if user.worker is None else verified(call, user, user.worker),
        rating=rating_of(user) if user.worker is not None or user.rating_count else UNSET,
    )


@endpoint("GET", "/v1/me", tag="people", rule=Rule.OWNER, api_keys=True)
async def get_me(call: Call) -> Me:
    """The caller's account."""
    return me_view(call, await call.user())


@endpoint("PATCH", "/v1/me", tag="people", rule=Rule.OWNER)
async def patch_me(call: Call, body: MePatch) -> Me:
    """Change the name, the locale or the avatar; what is left out stays."""
    user = await call.user()
    changed = await call.services.accounts.update(
        user.id,
        name=None if body.name is UNSET else body.name,
        locale=None if body.locale is UNSET else body.locale,
        avatar=None if body.avatar is UNSET else body.avatar,
    )
    if changed.locale != user.locale:
        call.services.verifier.forget(call.caller.session_id)  # it is remembered with the session
    return me_view(call, changed)


@endpoint("PUT", "/v1/me/worker", tag="people", rule=Rule.OWNER)
async def put_worker(call: Call, body: WorkerPut) -> Me:
    """Become a worker, or change what one offers. The same token works on: roles come from the account."""
    user = await call.user()
    rate = body.hourly_rate if isinstance(body.hourly_rate, Money) else Money(body.hourly_rate, "CNY")
    profile = WorkerProfile(
        skills=tuple(dict.fromkeys(body.skills)),
        base_lat=body.base.lat,
        base_lon=body.base.lon,
        radius_m=body.radius_m,
        hourly_rate=rate.amount,
        currency=rate.currency,
        bio=body.bio,
    )
    return me_view(call, await call.services.accounts.become_worker(user.id, profile))


ENDPOINTS: tuple[Endpoint, ...] = (get_me, patch_me, put_worker)
