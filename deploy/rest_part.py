"""The REST application and its Serve deployment, put together."""

import os
from typing import Any, Final

from ray import serve

from deploy import registry
from deploy.connections import Connections, forget_revoked, keys_folder, new_id, secret
from deploy.ray_local import keep_replica_inside
from deploy.settings import Settings
from domain.orders import OrderRules
from serve_apps.integrations.sandbox import SandboxSms
from serve_apps.rest import build_app
from serve_apps.services import RestSettings, Services
from storage.accounts import SqlAccounts
from storage.cache import RedisOtp, RedisOutbox, RedisRateLimiter, RedisServer
from storage.partition_log import SqlStreamReader
from storage.read_models import SqlReadModels
from storage.sessions import SqlSessions
from storage.stream_records import SqlStreamRecords
from storage.tokens import JwtIssuer, JwtVerifier, SigningKeys

REST: Final = "rest"


def rest_application(settings: Settings) -> Any:
    """The Litestar application of one replica, with its connections; they are opened when it starts."""
    name = f"{REST}-{os.getpid()}"
    at = Connections(settings, name)
    keys = SigningKeys.open(keys_folder(settings))
    sessions = SqlSessions(at.database)
    verifier = JwtVerifier(keys, at.sessions, at.clock)
    redis = RedisServer(settings.redis_url, settings.namespace)
    outbox = RedisOutbox(redis)
    services = Services(
        router=at.router,
        accounts=SqlAccounts(at.database, at.clock, new_id),
        sessions=sessions,
        verifier=verifier,
        tokens=JwtIssuer(keys),
        read_models=SqlReadModels(at.database),
        reader=SqlStreamReader(at.database),
        records=SqlStreamRecords(at.database),
        otp=RedisOtp(redis),
        limiter=RedisRateLimiter(redis),
        outbox=outbox,
        sms=SandboxSms(outbox, at.clock),
        broker=at.broker,
        clock=at.clock,
        new_id=new_id,
        entropy=os.urandom,
        orders=OrderRules(policy=settings.policy),
        checks={"database": at.database.check, "broker": at.broker.confirm, "redis": redis.ping},
        metrics=at.metrics,
    )
    rest = RestSettings(
        otp_pepper=secret(settings, "otp-pepper"),
        webhook_secret=secret(settings, "webhook-secret"),
        env=settings.env,
        rate_limits=settings.rate_limits_on,
        trusted_hops=1,
        cors_origins=settings.origins,
        echo_request_id=False,
    )

    async def open_all() -> None:
        await at.open()
        await forget_revoked(at.broker, verifier)
        registry.enter(settings, REST, name, os.getpid(), {})

    async def close_all() -> None:
        registry.leave(settings, REST, name)
        await redis.close()
        await at.close()

    app = build_app(services, rest)
    app.on_startup.append(open_all)
    app.on_shutdown.append(close_all)
    return app


def rest_deployment(settings: Settings) -> serve.Application:
    """The Serve application. It gets a builder and not an app: an app does not pickle."""

    def build() -> Any:
        keep_replica_inside()
        return rest_application(settings)

    @serve.deployment(
        name=REST,
        num_replicas=settings.rest_replicas,
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=5,
    )
    @serve.ingress(build)
    class Rest:
        pass

    return Rest.bind()  # type: ignore[attr-defined]
