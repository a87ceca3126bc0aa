"""The sign-in providers that are configured, each over its adapter."""

from collections.abc import Mapping

from domain.identities import IdentityProvider, ProviderSettings
from domain.ports import Clock
from serve_apps.integrations.oidc import OidcProvider
from serve_apps.integrations.wechat import WechatProvider


def identity_providers(
    settings: Mapping[str, ProviderSettings], clock: Clock, *, dev: bool
) -> dict[str, IdentityProvider]:
    """One adapter for each provider, by the name that clients use."""
    return {
        name: OidcProvider(name, provider, clock, dev=dev)
        if provider.kind == "oidc"
        else WechatProvider(name, provider)
        for name, provider in settings.items()
    }
