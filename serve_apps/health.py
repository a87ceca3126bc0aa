"""For load balancers: is the process alive, and can it do its work?"""

import asyncio

from domain.errors import Code, FieldError, Refusal
from serve_apps.endpoint import Call, Endpoint, Rate, Rule, endpoint
from serve_apps.schemas.health import Alive, Ready
from serve_apps.services import Check


@endpoint("GET", "/health/live", tag="health", rule=Rule.PUBLIC, rate=Rate.NONE)
async def live(call: Call) -> Alive:
    """The process answers."""
    return Alive("ok")


@endpoint("GET", "/health/ready", tag="health", rule=Rule.PUBLIC, rate=Rate.NONE)
async def ready(call: Call) -> Ready:
    """The database, the broker and Redis answer, each within its time; else 503 naming those that do not."""
    checks = call.services.checks
    failures = await asyncio.gather(*(_failure(check, call.settings.ready_timeout_s) for check in checks.values()))
    broken = [FieldError(name, "unavailable", text) for name, text in zip(checks, failures, strict=True) if text]
    if broken:
        names = ", ".join(error.field for error in broken)
        raise Refusal(Code.UNAVAILABLE, f"not ready: {names}", errors=broken)
    return Ready("ready", dict.fromkeys(checks, "ok"))


async def _failure(check: Check, timeout_s: float) -> str:
    try:
        async with asyncio.timeout(timeout_s):
            await check()
    except TimeoutError:
        return f"no answer in {timeout_s:g} s"
    except Exception as error:  # whatever a driver raises, the answer is the same: not ready
        return f"does not answer ({type(error).__name__})"
    return ""


ENDPOINTS: tuple[Endpoint, ...] = (live, ready)
