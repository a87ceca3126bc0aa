"""Workers as customers see them."""

from msgspec import UNSET

from domain.errors import Code, Refusal
from serve_apps.endpoint import Call, Endpoint, Rule, endpoint
from serve_apps.me import money_of, rating_of, verified
from serve_apps.schemas.people import WorkerPublic


@endpoint("GET", "/v1/workers/{worker_id}", tag="people", rule=Rule.USER, api_keys=True)
async def get_worker(call: Call, worker_id: str) -> WorkerPublic:
    """A worker's public profile."""
    user = (await call.services.accounts.get([worker_id])).get(worker_id)
    if user is None or user.worker is None:
        raise Refusal(Code.NOT_FOUND)
    return WorkerPublic(
        id=user.id,
        name=user.name,
        skills=list(user.worker.skills),
        radius_m=user.worker.radius_m,
        hourly_rate=money_of(user.worker),
        bio=user.worker.bio,
        rating=rating_of(user),
        verified=verified(call, user, user.worker),
        avatar=UNSET if user.avatar is None else user.avatar,
    )


ENDPOINTS: tuple[Endpoint, ...] = (get_worker,)
