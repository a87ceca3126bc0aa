# ruff: noqa: E501 - one pattern is one line
"""E-mail addresses, links to a person's profile, and messenger handles in a folded message."""

import re
from typing import Final

from domain.masking_fold import Span

# --- e-mail ----------------------------------------------------------------------------------------------------------

_LOCAL: Final = r"(?<![a-z0-9._%+\-])[a-z0-9][a-z0-9._%+\-]{0,63}+"
_LABEL: Final = r"[a-z0-9ß-öø-ÿ](?:[a-z0-9ß-öø-ÿ\-]{0,61}[a-z0-9ß-öø-ÿ])?"
_TLD: Final = r"(?:com|net|org|edu|gov|info|biz|io|co|me|cn|hk|tw|sg|uk|us|ca|au|nz|ie|de|at|ch|fr|eu|app|dev|shop|online|xyz|top|vip|tech|site)"
_AT_SIGN: Final = (
    r" {0,2}@ {0,2}| {0,2}[(\[{<] {0,2}(?:at|@|艾特) {0,2}[)\]}>] {0,2}| {0,2}(?:艾特|圈a|爱特) {0,2}| ?#at# ?"
)
_DOT_SIGN: Final = (
    r" {0,2}\. {0,2}| {0,2}[(\[{<] {0,2}(?:dot|\.|点) {0,2}[)\]}>] {0,2}| {1,2}dot {1,2}| {0,2}点 {0,2}|_dot_"
)
_DOT_WORD: Final = r" {0,2}[(\[{<] {0,2}(?:dot|\.|点) {0,2}[)\]}>] {0,2}| {1,2}dot {1,2}| {0,2}点 {0,2}|_dot_"
_PROVIDER: Final = (
    r"(?:gmail|googlemail|outlook|hotmail|live|msn|yahoo|ymail|icloud|aol|proton|protonmail|gmx|web|qq|foxmail|163|126|139|189|"
    r"sina|sohu|yeah|aliyun|yandex|mail|fastmail|btinternet)"
)
_DOTTED: Final = rf"(?:[a-z0-9_%+\-]{{1,32}}(?:{_DOT_WORD})){{0,3}}+"
_EMAILS: Final = (
    re.compile(rf"(?<![a-z0-9._])(?:[a-z0-9.]{{1,32}}_){{0,3}}[a-z0-9.]{{1,32}}_at_(?:[a-z0-9]{{1,32}}_dot_){{1,3}}{_TLD}(?![a-z0-9])"),
    re.compile(rf"{_LOCAL}@{_LABEL}(?:\.{_LABEL}){{1,6}}"),
    re.compile(rf"(?<![a-z0-9._%+\-]){_DOTTED}[a-z0-9][a-z0-9._%+\-]{{0,63}}(?:{_AT_SIGN})(?:{_LABEL}(?:{_DOT_SIGN})){{1,3}}{_TLD}(?![a-z0-9])"),
    re.compile(rf"{_LOCAL}(?:{_AT_SIGN}){_PROVIDER}(?![a-z0-9])"),
    re.compile(rf"(?<![a-z0-9._%+\-]){_DOTTED}[a-z0-9][a-z0-9._%+\-]{{0,63}} at (?:{_LABEL}(?:{_DOT_WORD})){{1,3}}{_TLD}(?![a-z0-9])"),
    re.compile(rf"(?<![a-z0-9._%+\-]){_DOTTED}[a-z0-9][a-z0-9._%+\-]{{0,63}} at {_PROVIDER}(?:(?:{_DOT_SIGN}){_TLD}){{0,2}}(?![a-z0-9])"),
    re.compile(
        rf"(?:e-?mail|mail|邮箱|电邮)(?: (?:me|us|is|address|to|at|on|my|:|me at)){{0,3}}[ :]{{1,3}}"
        rf"(?P<mail>[a-z0-9][a-z0-9._%+\-]{{0,63}} at {_LABEL}(?:\.{_LABEL}){{1,4}})"
    ),
)  # fmt: skip


def find_emails(text: str, cased: str) -> list[Span]:
    """The spans of e-mail addresses, plain or written around."""
    if not _MAIL_HINT.search(text):
        return []
    return [
        match.span("mail" if "mail" in match.groupdict() else 0) for shape in _EMAILS for match in shape.finditer(text)
    ]


_MAIL_HINT: Final = re.compile(r"@|[ _(\[{<#]at[ _)\]}>#]|艾特|爱特|圈a")

# --- links -----------------------------------------------------------------------------------------------------------

_PROFILE: Final = (
    r"wa\.me|api\.whatsapp\.com|t\.me|telegram\.me|m\.me|line\.me|signal\.me|discord\.gg|u\.wechat\.com|weixin\.qq\.com|qm\.qq\.com|"
    r"(?:[a-z]{1,6}\.)?(?:facebook|instagram|fb|linkedin|twitter|x|tiktok|snapchat|weibo|xiaohongshu|douyin)\.com|linktr\.ee|skype\.com"
)
_LINKS: Final = (
    re.compile(rf"(?<![a-z0-9.\-@])(?:https?://)?(?:www\.)?(?:{_PROFILE})/[^\s,;\u4e00-\u9fff\x00]{{1,200}}"),
    re.compile(
        r"(?:my|our|company) (?:own )?(?:web ?site|site|page|web ?page|homepage)(?: (?:is|at|address)|:){0,2} {1,2}"
        rf"(?P<link>(?:https?://)?(?:{_LABEL}\.){{1,4}}{_TLD}(?![a-z0-9\-])(?:/[^\s,;\u4e00-\u9fff\x00]{{0,200}})?)"
    ),
    re.compile(
        r"(?:官网|网站|主页|网址)(?:地址)?[是为: ]{0,3}"
        rf"(?P<link>(?:https?://)?(?:{_LABEL}\.){{1,4}}{_TLD}(?![a-z0-9\-])(?:/[^\s,;\u4e00-\u9fff\x00]{{0,200}})?)"
    ),
)


def find_links(text: str, cased: str) -> list[Span]:
    """The spans of links that lead to a person: messengers, social networks, a site called one's own."""
    if "." not in text:
        return []
    return [
        match.span("link" if "link" in match.groupdict() else 0) for shape in _LINKS for match in shape.finditer(text)
    ]


# --- handles ---------------------------------------------------------------------------------------------------------

_APP: Final = (
    r"we ?chat|weixin|wx|vx|whats ?app|telegram|tg|signal|skype|instagram|insta|ig|facebook|fb|messenger|snapchat|discord|viber|"
    r"kakao ?talk|kakao|twitter|tiktok|linkedin|threads|line(?= ?id)"
)
_APP_CN: Final = r"微信|威信|薇信|微x|v信|加v|加微|加我v|\+v|v我|vx|wx|wechat|weixin|薇|扣扣|企鹅|抖音|小红书|微博|快手|钉钉|飞书|电报|陌陌|qq"
_ID: Final = r"@?[a-z][a-z0-9_.\-]{3,31}"
_TELLING: Final = r"@?(?=[a-z0-9.\-]{0,31}[0-9_])[a-z][a-z0-9_.\-]{2,31}"
_WORDS_NO_ID: Final = frozenset(
    """
    pay group groups moments account accounts app apps mini work business video voice call calls message
    messages chat link file files contact number name photo photos picture pictures that this when then
    please tomorrow today later instead because works better easier fine good okay down broken closed
    blocked busy full weak slow free ready also only there here
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_HANDLES: Final = (
    re.compile(
        rf"(?<![a-z])(?:{_APP})(?: ?(?:id|handle|username|user name|user|account|name|contact)){{1,2}}(?: ?(?:is|:|=|-|as)){{0,2}} {{0,2}}(?P<id>{_ID})"
    ),
    re.compile(rf"(?<![a-z])(?:{_APP}) ?[:=] ?(?P<id>{_ID})"),
    re.compile(
        rf"(?<![a-z])(?:{_APP})(?: (?:me|us|is|at|on|as|under|it's|its|me at|me on)){{0,2}} {{1,2}}(?P<id>{_TELLING}|@[a-z0-9_.]{{3,32}})"
    ),
    re.compile(rf"(?<![a-z])(?:my|our) (?:{_APP}) is (?P<id>{_ID})"),
    re.compile(
        rf"(?:{_APP_CN})(?:联系)?(?:号码|号|账号|帐号|id|群|名|昵称|同名)?[ :=]{{0,2}}(?:号|是|为|叫|我|搜|用户名|请加|加|也是|:|=| ){{0,4}}"
        r"(?P<id>@?[a-z][a-z0-9_\-]{4,24}|[a-z][a-z0-9_\-]{0,3}[0-9_][a-z0-9_\-]{0,20})(?![a-z0-9])"
    ),
    re.compile(r"(?<![a-z])(?:qq|扣扣|企鹅)(?:号码|号|群|群号| number| id| no\.?)?(?: is|是|为|：)?[ :=]{0,3}(?P<id>[1-9][0-9 ]{4,12}[0-9])(?![0-9])"),
    re.compile(rf"(?<![a-z0-9])(?P<id>@[a-z0-9_.]{{3,32}})(?= (?:on|in|via) (?:{_APP}|line)(?![a-z]))"),
    re.compile(
        rf"(?:i'm|i am|im|find me|add me|reach me|message me|me|under|as|name is)(?: (?:as|at|under|by))? (?P<id>{_TELLING})"
        rf"(?= (?:on|in|via) (?:{_APP}|line)(?![a-z]))"
    ),
)  # fmt: skip
_APP_HINTS: Final = tuple(
    """
    chat weixin wx vx app telegram tg signal skype insta ig facebook fb messenger snap discord viber kakao twitter tiktok linkedin
    threads line qq 微 信 v 薇 扣扣 企鹅 抖音 小红书 快手 钉钉 飞书 电报 陌陌
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
"""Without any of these no messenger is named."""


def find_handles(text: str, cased: str) -> list[Span]:
    """The spans of names under which a messenger finds somebody."""
    if not any(hint in text for hint in _APP_HINTS):
        return []
    return [
        match.span("id")
        for shape in _HANDLES
        for match in shape.finditer(text)
        if match["id"].rstrip(".") not in _WORDS_NO_ID
    ]
