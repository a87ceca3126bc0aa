"""Data keys wrapped by AWS KMS, whose own key never leaves it."""

import asyncio
from typing import Any, Final

import msgspec

from domain.keys import DATA_KEY_BYTES, FreshKey, KeysUnavailable

_CONTEXT: Final = {"renoveasy": "data-key"}
"""Authenticated by KMS with every data key, and seen in CloudTrail and in key policies."""


class KmsSettings(msgspec.Struct, frozen=True):
    """`key` is a key's id, ARN or alias (`alias/renoveasy`). `endpoint` empty: the region's own. `timeout_s` bounds a call."""

    key: str
    region: str
    endpoint: str = ""
    timeout_s: float = 5.0


class KmsKeyProvider:
    """`keys.KeyProvider` by `GenerateDataKey` and `Decrypt`. Credentials are found the way of every AWS client.

    The identity needs `kms:GenerateDataKey` and `kms:Decrypt` on the keys it may use, and nothing else.
    """

    name: Final = "aws-kms"

    def __init__(self, settings: KmsSettings) -> None:
        self._settings = settings

    async def new_key(self) -> FreshKey:
        answer = await self._call("generate_data_key", KeyId=self._settings.key, KeySpec="AES_256")
        return FreshKey(self._plain(answer), bytes(answer["CiphertextBlob"]))

    async def unwrap(self, wrapped: bytes) -> bytes:
        # The blob says which key it needs: after the alias has moved to another one, what the former wrapped still opens.
        return self._plain(await self._call("decrypt", CiphertextBlob=wrapped))

    def _plain(self, answer: dict[str, Any]) -> bytes:
        plain = bytes(answer["Plaintext"])
        if len(plain) != DATA_KEY_BYTES:
            raise KeysUnavailable(f"{self._where} answered without a key of {DATA_KEY_BYTES} bytes")
        return plain

    @property
    def _where(self) -> str:
        return f"AWS KMS's key {self._settings.key} in {self._settings.region}"

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            from aiobotocore.config import AioConfig
            from aiobotocore.session import get_session
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise KeysUnavailable("AWS KMS needs the package aiobotocore: pip install 'renoveasy[aws]'") from None
        settings = self._settings
        config = AioConfig(
            connect_timeout=settings.timeout_s, read_timeout=settings.timeout_s, retries={"total_max_attempts": 1}
        )
        try:
            async with (
                asyncio.timeout(settings.timeout_s * 2),
                get_session().create_client(
                    "kms", region_name=settings.region, endpoint_url=settings.endpoint or None, config=config
                ) as kms,
            ):
                call = getattr(kms, operation)
                return dict(await call(EncryptionContext=_CONTEXT, **arguments))
        except ClientError as error:
            told = error.response.get("Error", {})
            reason = f"{told.get('Code', '')}: {told.get('Message', '')}"[:200]
            raise KeysUnavailable(f"{self._where} refuses: {reason}") from None
        except (BotoCoreError, OSError, TimeoutError, ValueError) as error:
            raise KeysUnavailable(
                f"{self._where} does not answer: {str(error)[:200] or type(error).__name__}"
            ) from None
