"""The REST application and its Serve deployment, put together."""

import os
from typing import Any, Final

from ray import serve

from actors.background import Background
from deploy import registry
from deploy.connections import AUDIT_KEY, Connections, forget_revoked, keys_folder, new_id, secret
from deploy.contents import objects
from deploy.keys import key_ring
from deploy.ray_local import keep_replica_inside
from deploy.settings import Settings
from domain.orders import OrderRules
from domain.places import NoPlaces
from domain.times import DAY_MS
from serve_apps import erasure, uploads
from serve_apps.intake import Intake
from serve_apps.integrations.providers import identity_providers
from serve_apps.integrations.sandbox import SandboxSms
from serve_apps.rest import build_app
from serve_apps.services import RestSettings, Services
from storage.accounts import SqlAccounts
from storage.audit import SqlAudit
from storage.blocks import SqlBlocks
from storage.cache import PhoneNames, RedisOtp, RedisOutbox, RedisRateLimiter, RedisServer, RedisTickets
from storage.challenges import RedisChallenges, RedisTries
from storage.erasures import SqlErasures
from storage.identities import SqlIdentities
from storage.mutes import SqlMutes
from storage.otp_budget import RedisOtpBudget
from storage.partition_log import SqlStreamReader
from storage.places import MaxMindPlaces
from storage.presence import RedisPresence
from storage.read_models import SqlReadModels
from storage.search import SqlMessageSearch
from storage.sessions import SqlSessions
from storage.sign_ins import RedisSignIns
from storage.stream_records import SqlStreamRecords
from storage.tokens import JwtIssuer, JwtVerifier, SigningKeys
from storage.uploads import SqlUploads
from storage.user_keys import SqlApiKeys, SqlDeviceKeys, SqlTotpSecrets
from storage.verification import SqlWorkerDocuments

REST: Final = "rest"


def rest_application(settings: Settings) -> Any:
    """The Litestar application of one replica, with its connections; they are opened when it starts."""
    name = f"{REST}-{os.getpid()}"
    at = Connections(settings, REST, name)
    keys = SigningKeys.open(keys_folder(settings))
    field_keys = key_ring(settings, at.database)
    audit = SqlAudit(at.database, secret(settings, AUDIT_KEY), at.clock, new_id)
    sessions = SqlSessions(at.database, audit)
    verifier = JwtVerifier(keys, at.sessions, at.clock)
    issuer = JwtIssuer(keys)
    redis = RedisServer(settings.url_of("redis_url", REST), settings.namespace)
    pepper = secret(settings, "otp-pepper")
    phones = PhoneNames(pepper)
    outbox = RedisOutbox(redis)
    contents = objects(settings)
    providers = identity_providers(settings.oidc_providers, at.clock, dev=settings.env == "dev")
    services = Services(
        router=at.router,
        accounts=SqlAccounts(at.database, at.clock, new_id, field_keys, audit),
        sessions=sessions,
        verifier=verifier,
        tokens=issuer,
        read_models=SqlReadModels(at.database),
        search=SqlMessageSearch(at.database),
        blocks=SqlBlocks(at.database),
        mutes=SqlMutes(at.database),
        presence=RedisPresence(redis),
        reader=SqlStreamReader(at.database),
        records=SqlStreamRecords(at.database),
        otp=RedisOtp(redis, phones),
        otp_budget=RedisOtpBudget(redis),
        identities=SqlIdentities(at.database),
        sign_ins=RedisSignIns(redis, phones),
        erasures=SqlErasures(at.database),
        uploads=SqlUploads(at.database, contents, field_keys),
        worker_documents=SqlWorkerDocuments(at.database, field_keys, audit),
        intake=Intake(max(64 << 20, 4 * settings.upload_bytes)),
        providers=providers,
        tickets=RedisTickets(redis),
        limiter=RedisRateLimiter(redis),
        device_keys=SqlDeviceKeys(at.database),
        challenges=RedisChallenges(redis),
        totp=SqlTotpSecrets(at.database, field_keys, issuer.unseal),
        tries=RedisTries(redis),
        api_keys=SqlApiKeys(at.database),
        outbox=outbox,
        audit=audit,
        sms=SandboxSms(outbox, at.clock),
        broker=at.broker,
        clock=at.clock,
        new_id=new_id,
        entropy=os.urandom,
        orders=OrderRules(policy=settings.policy),
        places=MaxMindPlaces(settings.geoip_path) if settings.geoip_path is not None else NoPlaces(),
        checks={"database": at.database.check, "broker": at.broker.confirm, "redis": redis.ping},
        metrics=at.metrics,
    )
    rest = RestSettings(
        otp_pepper=pepper,
        webhook_secret=secret(settings, "webhook-secret"),
        env=settings.env,
        rate_limits=settings.rate_limits_on,
        otp_budgets=settings.otp,
        ops_totp=settings.ops_totp_on,
        trusted_hops=1,
        cors_origins=settings.origins,
        sign_in_redirects=settings.oidc_redirects,
        upload_bytes=settings.upload_bytes,
        upload_pixels=settings.upload_pixels,
        upload_quota_bytes=settings.upload_quota_bytes,
        uploads_per_user_hour=settings.uploads_per_user_hour,
        echo_request_id=False,
    )

    background = Background()

    async def open_all() -> None:
        await at.open()
        await field_keys.open()
        background.spawn(erasure.run(services))
        if settings.audit_keep_days:
            background.spawn(audit.sweep_for_ever(settings.audit_keep_days * DAY_MS))
        background.spawn(uploads.sweep(services))
        await forget_revoked(at.broker, verifier)
        registry.enter(settings, REST, name, os.getpid(), {})

    async def close_all() -> None:
        registry.leave(settings, REST, name)
        await background.stop()
        await audit.close()
        await contents.close()
        for provider in providers.values():
            await provider.close()
        await redis.close()
        await at.close()

    app = build_app(services, rest)
    app.on_startup.append(open_all)
    app.on_shutdown.append(close_all)
    return app


def rest_deployment(settings: Settings) -> serve.Application:
    """The Serve application. It gets a builder and not an app: an app does not pickle."""
    settings = settings.of_role(REST)

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
