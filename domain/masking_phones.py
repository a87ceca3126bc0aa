# ruff: noqa: E501 - one pattern is one line
"""Phone numbers in a folded message: written in digits, in words, or in a mixture of both."""

import re
from itertools import pairwise
from typing import Final

from domain.masking_fold import HIDDEN, Span, hide, merged

_LEAST: Final = 7
"""Digits of the shortest phone number, if it is said to be one."""
_S: Final = r"[ \t.,_/()*~|…\-]{0,4}+"
"""What may stand between the digits of a number."""
_TIGHT: Final = r"[ .()/\-]{0,3}+"
"""The same where people only write it for legibility."""

# --- what looks like a phone number and is none ---------------------------------------------------------------------

_UNITS: Final = (
    r"mm|cm|dm|km|m2|m3|m²|m³|㎡|m|sqm|sq|ft|feet|foot|inch|inches|yd|kg|g|lbs?|kw|w|kwh|v|amps?|hz|litres?|liters?|ml|l|pcs|pieces|"
    r"units|days?|hours?|hrs?|min|minutes|weeks?|months?|years?|%|℃|°|毫米|厘米|公分|公里|米|平|方|公斤|千克|克|斤|吨|升|瓦|个|块|片|"
    r"根|张|套|箱|桶|袋|支|卷|台|盏|扇|天|小时|分钟|年|月|周|次|人|名|层|楼|寸|元|万|千|百|rmb|cny|usd|eur|gbp|dollars?|euros?|"
    r"pounds?|yuan|€|k"
)
_MARKERS: Final = (
    r"order|invoice|inv|sku|model|serial|s/n|sn|ref|reference|tracking|contract|part|item|article|art|batch|lot|ean|barcode|quote|"
    r"quotation|ticket|case|policy|permit|licen[sc]e|parcel|shipment|delivery note|receipt|product|catalogue|iban|account|card|meter|"
    r"订单|单号|发票|型号|货号|编号|序列|合同|批号|条码|条形码|物料|色号|运单|快递|报价单|工单|许可证|身份证|卡号|账号|账户|税号|表号|户号|"
    r"执照|产品|款号|流水"
)
_NO_PHONE: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        rf"(?<![a-z])(?:{_MARKERS})(?:[ \t]{{0,2}}(?:号码|号|no|number|nr|id|code|#|is|是|为)){{0,3}}[ \t:#.]{{0,3}}"
        r"(?=[a-z0-9./_\-]{0,24}[0-9])[a-z0-9][a-z0-9./_\-]{2,40}",
        r"(?<![0-9])(?:19|20)[0-9]{2}[\-/.年] ?[0-9]{1,2}[\-/.月] ?[0-9]{1,2}日?(?:t?[0-9]{2}:[0-9]{2}\S{0,12})?(?![0-9])",
        r"(?<![0-9./\-])[0-9]{1,2}[./\-][0-9]{1,2}[./\-](?:20)?[0-9]{2}(?![./\-]?[0-9])",
        r"(?<![0-9])[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?(?![0-9])",
        r"(?:[¥$€£￥]|rmb|cny|usd|eur|gbp) ?[0-9]{1,3}(?:,[0-9]{3}){0,2}(?:\.[0-9]{1,2})?(?![0-9])",
        r"(?:[¥$€£￥]|rmb|cny|usd|eur|gbp) ?[0-9]{1,8}(?:\.[0-9]{1,2})?(?![0-9])",
        r"(?<![0-9,])[0-9]{1,3}(?:,[0-9]{3}){1,2}(?:\.[0-9]+)?(?![0-9,])",
        rf"(?<![0-9])(?<![0-9][ .\-])[0-9]{{1,8}}(?:\.[0-9]{{1,4}})? ?(?:{_UNITS})(?![a-z])",
        r"(?<![0-9.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?![0-9.])",
    )
)

# --- the shapes of phone numbers -------------------------------------------------------------------------------------


def _digits(low: int, high: int, between: str = _S) -> str:
    return rf"(?:{between}[0-9]){{{low},{high}}}(?![0-9])"


_CALL: Final = (
    r"call|phone|tel|telephone|mobile|cell|cellphone|text|sms|ring|dial|reach|hotline|landline|whatsapp|fax|mob|ph|电话|手机|致电|打给|拨打|拨|"
    r"座机|热线|联系方式|联系|号码|短信|来电|传真"
)
_FILLER: Final = r"[ \t:=,.#\-]|me|us|him|her|at|on|is|no|number|numbers|my|the|to|our|office|home|new|or|号|码|是|为|我|请|吧|一下|可以|就|：|here"
_SHAPES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?<![0-9])(?:\+{_S}|00{_S})?(?:8{_S}6{_S})?\(?1{_S}[3-9]{_digits(9, 9)}",
        rf"\+{_S}1{_S}[2-9]{_digits(9, 9)}",
        rf"(?:\+|(?<![0-9])00){_S}[1-9]{_digits(7, 13, _TIGHT)}",
        r"(?<![0-9])(?:1[ .\-]?)?\(?[2-9][0-9]{2}\)?[ .\-]{0,3}[2-9][0-9]{2}[ .\-]{0,3}[0-9]{4}(?![0-9])",
        r"(?<![0-9])[48]00[ \-]?[0-9]{3,4}[ \-]?[0-9]{3,4}(?![0-9])",
        rf"(?<![0-9.,])\(?0[1-9]{_digits(7, 10, _TIGHT)}",
        rf"(?<![0-9.,])\(?0{_S}1{_S}0{_S}{_digits(7, 8)}",
    )
)
_ASKED: Final = re.compile(rf"(?:{_CALL})(?:{_FILLER}){{0,8}}+(?P<number>\+?[0-9]{_digits(6, 14, '[ .-]{0,2}+')})")

# --- digits in words -------------------------------------------------------------------------------------------------

_WORDS: Final = {
    "zero": "0", "oh": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9",
}  # fmt: skip
_SIGNS: Final = dict(
    zip("零〇洞一壹幺二贰貳三叁參四肆五伍六陆陸七柒拐八捌九玖勾", "000111222333445566677788999", strict=True)
)
_WORD: Final = "|".join(_WORDS)
_SPELLED: Final = re.compile(
    rf"(?<![a-z])(?:(?:double|triple)[ \-]?)?(?:{_WORD})++(?![a-z])|[{''.join(_SIGNS)}]++"
    r"|(?<=[0-9])[oil|]{1,11}(?![a-z])|(?<![a-z])[oil|]{1,11}(?=[0-9])"
)
_IN_WORDS: Final = re.compile(
    rf"(?<![a-z])(?:(?:(?:double|triple)[ \-])?(?:{_WORD})[ ,.…\-]{{0,3}}+){{7,}}+"
    rf"|(?:[{''.join(_SIGNS)}][ ,.…\-]{{0,2}}+){{7,}}+"
)
_ENOUGH: Final = re.compile(rf"[0-9](?:{_S}[0-9]){{{_LEAST - 1},}}+")
_AROUND: Final = 80
"""How far from its digits a word can stand that says what a number is."""
_LETTERED: Final = re.compile(r"[0-9][oil|]|[oil|][0-9]")
_ONE_WORD: Final = re.compile(rf"(double|triple)?[ \-]?({_WORD})")


def find_phones(text: str, cased: str) -> list[Span]:
    """The spans of phone numbers in a folded text."""
    if not _may_hold_one(text):
        return []
    spelled = _spelled_out(text)
    if spelled:
        text = hide(text, spelled)
    found = _in_digits(text)
    rest = hide(text, found)
    if _SPELLED.search(rest):
        plain, begins, ends = _as_digits(rest)
        found += [(begins[start], ends[end - 1]) for start, end in _in_digits(plain)]
    return spelled + found


def _may_hold_one(text: str) -> bool:
    """Cheap, and true wherever there are digits enough, in whatever writing."""
    digits = sum(map(text.count, "0123456789"))
    if digits < _LEAST and not text.isascii():
        digits += sum(map(text.count, _SIGNS))
    if digits < _LEAST:
        digits += sum(map(text.count, _WORDS))
    return digits >= _LEAST or (digits >= _LEAST // 2 and _LETTERED.search(text) is not None)


def _in_digits(text: str) -> list[Span]:
    around = merged([(max(0, m.start() - _AROUND), min(len(text), m.end() + _AROUND)) for m in _ENOUGH.finditer(text)])
    return [(start + at, stop + at) for at, end in around for start, stop in _in_stretch(text[at:end])]


def _in_stretch(text: str) -> list[Span]:
    for pattern in _NO_PHONE:
        text = pattern.sub(lambda match: HIDDEN * len(match[0]), text)
    found: list[Span] = []
    for shape in _SHAPES:
        spans = [match.span() for match in shape.finditer(text) if _is_number(text, match)]
        if spans:
            found += spans
            text = hide(text, spans)
    return found + [match.span("number") for match in _ASKED.finditer(text)]


_GROUP: Final = re.compile("[0-9]+")
_CONTACT_LETTERS: Final = frozenset(
    {"tel", "ph", "mob", "wx", "vx", "v", "no", "t", "m", "p", "hp", "cell", "fax", "q", "qq"}
)


def _is_number(text: str, match: "re.Match[str]") -> bool:
    start, end = match.span()
    return not _in_a_code(text, start, end) and not _is_list(_GROUP.findall(match[0]))


def _in_a_code(text: str, start: int, end: int) -> bool:
    """Letters or signs grown together with the digits make them a serial number."""
    before = re.search(r"[a-z]{1,12}[\-_]?$|[#_]$", text[max(0, start - 14) : start])
    if before is not None:
        letters = before[0].rstrip("-_")
        if letters in ("", "#") or (len(letters) < 3 and letters not in _CONTACT_LETTERS):
            return True
    after = re.match(r"_|-?[a-z]{1,3}", text[end : end + 4])
    return after is not None and len(after[0]) < 3


def _is_list(groups: list[str]) -> bool:
    """Round figures side by side are sizes or amounts: 300 600 1200."""
    if len(groups) < 2 or any(group[0] == "0" for group in groups):
        return False
    return [len(group) for group in groups] != [3, 4, 4] and all(group.endswith("0") for group in groups)


def _spelled_out(text: str) -> list[Span]:
    found: list[Span] = []
    for match in _IN_WORDS.finditer(text):
        digits = "".join(_value(word) for word in _SPELLED.findall(match[0]))
        counting = all(ord(b) - ord(a) == 1 for a, b in pairwise(digits[:6]))
        if not counting:
            found.append((match.start(), match.start() + len(match[0].rstrip(" ,.…-"))))
    return found


def _value(spelled: str) -> str:
    if spelled[0] in _SIGNS:
        return "".join(_SIGNS[sign] for sign in spelled)
    if spelled[0] in "oil|" and not _ONE_WORD.match(spelled):
        return "".join("0" if letter == "o" else "1" for letter in spelled)
    times = {"double": 2, "triple": 3, "": 1}
    return "".join(_WORDS[word] * times[many] for many, word in _ONE_WORD.findall(spelled))


def _as_digits(text: str) -> tuple[str, list[int], list[int]]:
    """The text with spelled digits as digits, and where each of its characters began and ended."""
    pieces: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    at = 0
    for match in _SPELLED.finditer(text):
        start, end = match.span()
        value = _value(match[0])
        pieces += (text[at:start], value)
        begins += (*range(at, start), *[start] * len(value))
        ends += (*range(at + 1, start + 1), *[end] * len(value))
        at = end
    begins += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    return "".join((*pieces, text[at:])), begins, ends
