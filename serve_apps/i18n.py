"""What people read, in the languages the platform speaks. Programs read codes."""

import re
from typing import Final

from domain.errors import Code
from domain.sentences import LANGUAGES, language_of

LOCALES: Final = LANGUAGES
DEFAULT: Final = LANGUAGES[0]

_TITLES: Final[dict[Code, tuple[str, str]]] = {
    Code.UNAUTHENTICATED: ("Log in first", "请先登录"),
    Code.TOKEN_EXPIRED: ("The access token has expired", "登录凭证已过期"),
    Code.SESSION_REVOKED: ("This device was logged out", "该设备已退出登录"),
    Code.STEP_UP_REQUIRED: ("Confirm that it is you", "请先验证身份"),
    Code.FORBIDDEN: ("Not allowed", "无权执行此操作"),
    Code.NOT_FOUND: ("Not found", "未找到"),
    Code.METHOD_NOT_ALLOWED: ("Method not allowed", "不支持该请求方法"),
    Code.CONFLICT: ("Conflict", "请求冲突"),
    Code.VERSION_CONFLICT: ("It has changed meanwhile", "内容已被更新，请刷新后重试"),
    Code.INVALID_TRANSITION: ("Not possible in this state", "当前状态下无法执行此操作"),
    Code.IDEMPOTENCY_MISMATCH: ("The same id was used for something else", "该编号已用于其他请求"),
    Code.HOLD: ("On hold", "已被冻结"),
    Code.OFFER_TAKEN: ("Somebody else was first", "已被他人接单"),
    Code.INVALID: ("The request is not valid", "请求内容无效"),
    Code.PAYLOAD_TOO_LARGE: ("Too large", "请求内容过大"),
    Code.UNSUPPORTED_MEDIA_TYPE: ("Send application/json", "仅支持 application/json"),
    Code.RATE_LIMITED: ("Too many requests", "请求过于频繁，请稍后再试"),
    Code.UNAVAILABLE: ("Temporarily unavailable", "服务暂时不可用，请稍后重试"),
    Code.BUSY: ("Busy, try again", "服务繁忙，请稍后重试"),
    Code.INTERNAL: ("Something went wrong on our side", "服务器内部错误"),
    Code.FENCED: ("Temporarily unavailable", "服务暂时不可用，请稍后重试"),
}

_OTP: Final = (
    "{code} is your RenovEasy code. It is valid for {minutes} minutes. Never give it to anybody.",
    "【RenovEasy】验证码 {code}，{minutes} 分钟内有效。请勿泄露给他人。",
)

_LANGUAGE = re.compile(r"\s*([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{1,8})*\s*(?:;\s*q\s*=\s*([0-9.]{1,5}))?\s*")


def locale_of(accept_language: str, own: str = "") -> str:
    """The best of our languages for an `Accept-Language` header (RFC 9110, section 12.5.4).

    Where it names none of them, that of the account, whose locale is `own`; English otherwise.
    """
    best, weight = language_of(own) or DEFAULT, 0.0
    for item in accept_language[:256].split(",")[:16]:
        match = _LANGUAGE.fullmatch(item)
        if match is None or match[1].lower() not in LOCALES:
            continue
        try:
            quality = float(match[2] or 1)
        except ValueError:
            continue
        if quality > weight:
            best, weight = match[1].lower(), quality
    return best


def title(code: Code, locale: str) -> str:
    """The short sentence for a code."""
    return _TITLES[code][LOCALES.index(locale)]


def otp_text(code: str, ttl_s: int, locale: str) -> str:
    """The text message that carries a one-time code."""
    return _OTP[LOCALES.index(locale)].format(code=code, minutes=ttl_s // 60)
