"""Texts without personal data and secrets: for logs, and for what an error repeats of its request.

Better too much than too little: a long number that is no phone may be hidden as well. Ids, times, addresses of the network
and hashes stay, or nobody could read a log.
"""

import re
from typing import Final

EXAMPLE_PHONE: Final = "+8613800000000"
"""The number in our own texts; it is nobody's."""

# --- phones ------------------------------------------------------------------------------------------------------

_SEPARATOR: Final = r"[ \t\u00a0\u2007\u2009\u202f.\-\u2010-\u2015\u2212/]"
_KEPT: Final = (
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",  # a UUID
    r"(?<![0-9a-z])(?=[0-9]*[a-f])[0-9a-f]{16,}(?![0-9a-z])",  # a hash, a trace's id
    r"0x[0-9a-fA-F]+",
)
_PHONES: Final = (
    # International: +86 138 0013 8000, 0086-138..., %2B86138..., +1 (415) 555-0123.
    rf"(?:\+|\uff0b|%2[Bb]|(?<!\d)00)(?:\(?[^\W\D0]\)?)(?:{_SEPARATOR}{{0,2}}\(?\d\)?){{6,14}}(?!\d)",
    # (415) 555-0123, (010) 6234-5678, （020）7946 0958
    rf"[(\uff08]0?\d{{2,4}}[)\uff09]{_SEPARATOR}?\d{{3,4}}{_SEPARATOR}?\d{{4}}(?!\d)",
    # 415-555-0123, 1-800-555-0199
    rf"(?<![\d.])(?:1{_SEPARATOR})?\d{{3}}{_SEPARATOR}\d{{3}}{_SEPARATOR}\d{{4}}(?!\d)",
    # 138 0013 8000, 138-0013-8000
    rf"(?<![\d.])1[3-9]\d{_SEPARATOR}\d{{4}}{_SEPARATOR}\d{{4}}(?!\d)",
    # 010-62345678, 020 7946 0958, 07700 900123: a nought, and nine digits or more
    rf"(?<![\d.])0\d(?:{_SEPARATOR}?\d){{7,10}}(?![\d])",
    # 13800138000, 8613800138000, 4155550123; neither seconds nor milliseconds of these years
    r"(?<![\d.])(?!1\d{9}(?!\d))(?!1\d{12}(?!\d))\d{10,15}(?!\d|\.\d)",
)
_PHONE: Final = re.compile(f"(?P<kept>{'|'.join(_KEPT)})|(?P<phone>{'|'.join(_PHONES)})")
_SHOWN_BEFORE: Final = 3
_SHOWN_AFTER: Final = 2
_SHORTEST: Final = 9
"""Of a number with fewer digits nothing is shown: too little would be hidden."""

# --- the rest ----------------------------------------------------------------------------------------------------

_EMAIL: Final = re.compile(r"[\w.!#$&+/=?^`{|}~-]{1,64}(?:@|\uff20|%40)(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}")
_JWT: Final = re.compile(r"\beyJ[\w-]{5,2000}\.[\w-]{1,4000}\.[\w-]{0,2000}")
_BEARER: Final = re.compile(r"(?i)\b(bearer |basic |token[=:] ?)[\w.~+/-]{12,}=*")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^\s/@]+@")
_COOKIE: Final = re.compile(r"(?i)\b((?:set-)?cookie[\"']?\s*[:=]\s*[\"']?)[^\n\"']+")
_NAMED: Final = re.compile(
    r"""(?ix)((?<![a-z])(?:password|passwd|pwd|passphrase|secret|api[_-]?key|private[_-]?key|authorization
    |token|ticket|pepper|signature)["']?\s*(?:[=:]|%3D|,\s)\s*(?:b?["'])?(?:(?:bearer|basic|digest)\ )?)
    (?!\*\*\*|None\b|null\b|true\b|false\b)[^\s"',;&)}\]]{3,}"""
)
_VAULT: Final = re.compile(r"\b(?:hv[sbr]\.|AKIA|ASIA)[\w-]{8,}")
_API_KEY: Final = re.compile(r"\b(rek_)[\w-]{8,}")
# Long and of all three kinds of characters: random, in base64url. Identifiers of programs have no such mixture.
_RANDOM: Final = re.compile(r"(?<![\w/.-])(?=[\w-]*[a-z])(?=[\w-]*[A-Z])(?=[\w-]*\d)[A-Za-z0-9_-]{24,}={0,2}(?![\w.])")
_CODE: Final = re.compile(
    r"(?i)((?<![a-z])(?:otp|code|pin|passcode|验证码)[^\w\n]{0,4}(?:(?:is|was|为|是)[^\w\n]{0,3})?)\d{4,8}(?!\d)"
)
_CODE_FIRST: Final = re.compile(r"(?i)(?<!\d)\d{4,8}(?=(?: is| 是)\W(?:your|you|the|您|你))")


def without_phones(text: str) -> str:
    """The text with at most the first three and the last two digits of each phone number."""
    return _PHONE.sub(_hidden, text)


def redacted(text: str) -> str:
    """The text without phone numbers, e-mail addresses, tokens, one-time codes, passwords and keys."""
    text = _JWT.sub("***", text)
    text = _CREDENTIALS.sub("***@", text)
    text = _COOKIE.sub(r"\1***", text)
    text = _NAMED.sub(r"\1***", text)
    text = _BEARER.sub(r"\1***", text)
    text = _VAULT.sub("***", text)
    text = _API_KEY.sub(r"\1***", text)
    text = _CODE.sub(r"\1***", text)
    text = _CODE_FIRST.sub("***", text)
    text = _EMAIL.sub("***@***", text)
    return without_phones(_RANDOM.sub("***", text))


def shortened_phone(text: str) -> str:
    """What is shown of a text that is known to be a phone number, however it is written."""
    plus, rest = ("+", text[3:]) if text[:3].lower() == "%2b" else ("+" if text[:1] in ("+", "\uff0b") else "", text)
    digits = "".join(letter for letter in rest if letter.isdigit())
    if len(digits) < _SHORTEST:
        return "***"
    return f"{plus}{digits[:_SHOWN_BEFORE]}***{digits[-_SHOWN_AFTER:]}"


def _hidden(match: re.Match[str]) -> str:
    phone = match["phone"]
    return match[0] if phone is None or phone == EXAMPLE_PHONE else shortened_phone(phone)
