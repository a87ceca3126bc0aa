# ruff: noqa: E501 - one pattern is one line
"""Street addresses in a folded message, in English, German and Chinese."""

import re
from typing import Final

from domain.masking_fold import HIDDEN, Span

# --- English ---------------------------------------------------------------------------------------------------------

_NO_NAME: Final = frozenset(
    """
    the a an of per in on at to from for and or by with under over near across along down up mm cm m km
    metres meters feet ft days day hours hour weeks minutes months years coats coat tiles steps doors
    houses blocks pieces units boxes bags lights lamps cars trucks pipes cables square linear more other
    different new old extra this that each is are was best only way ways one two three next every any
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
_STREET: Final = r"street|avenue|boulevard|road|lane|st\.?|ave\.?|blvd\.?|rd\.?|ln\.?"
_CAPITAL_ONLY: Final = r"Drive|Dr\.?|Court|Ct\.?|Place|Pl\.?|Square|Sq\.?|Terrace|Close|Crescent|Cres\.?|Gardens|Grove|Highway|Hwy\.?|Parkway|Way|Walk|Row|Mews|Hill|Circle|Quay|Park|Rise|Green|Plaza"
_NAME: Final = r"[a-z][a-z'.\-]{0,24}"
_PROPER: Final = r"[A-Z][A-Za-z'.\-]{0,24}|\d{1,3}(?:st|nd|rd|th)"
_INSIDE: Final = (
    r"(?:apt|apartment|flat|unit|suite|ste|room|rm|floor|fl|building|bldg|block)\.? ?#?(?:\d{1,5}[a-z]?|[a-z]\d{0,4})|#\d{1,5}[a-z]?|"
    r"\d{1,3}(?:st|nd|rd|th)? floor"
)
_POSTCODE: Final = r"[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|(?:[a-z]{2} )?\d{5}(?:-\d{4})?|\d{6}"
_STREETS: Final = (
    re.compile(rf"(?<![\w.,/\-])\d{{1,5}}[a-z]?(?:[\-/]\d{{1,4}})?,? (?P<name>(?:(?:{_NAME}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}?)(?:{_STREET})(?![a-z])"),
)  # fmt: skip
_PROPER_STREET: Final = re.compile(
    rf"(?<![\w.,/\-])\d{{1,5}}[A-Za-z]?(?:[\-/]\d{{1,4}})?,? (?:(?:{_PROPER}) ){{1,3}}?(?:{_CAPITAL_ONLY})(?![A-Za-z])"
)
_BEFORE: Final = re.compile(rf"(?<![a-z])(?:(?:{_INSIDE})(?:,? |, ?)){{0,2}}(?:no\.? ?)?$")
_AFTER: Final = tuple(
    (re.compile(pattern), cased)
    for pattern, cased in (
        (r" (?:nw|ne|sw|se)(?![a-z])", False),
        (rf",? (?:{_INSIDE})(?![a-z0-9])", False),
        (r", ?[A-Z][a-z]+(?: [A-Z][a-z]+)?(?![A-Za-z])", True),
        (r", ?[A-Z]{2}(?![A-Za-z])", True),
        (rf",? (?:{_POSTCODE})(?![a-z0-9])", False),
    )
)
"""What may follow a street, one after the other, and whether its capitals count."""
_GERMAN: Final = re.compile(
    r"(?<![a-zäöüß\-])(?:[a-zäöüß\-]{2,24}(?:straße|strasse|str\.|weg|platz|allee|gasse)) \d{1,4} ?[a-z]?(?![a-z0-9])(?:, ?\d{5} [a-zäöüß]+)?"
)
_CODES: Final = (
    re.compile(r"(?:post ?code|postal code|zip(?: code)?)(?: is|:| )? ?(?P<code>[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|\d{5,6}(?:-\d{4})?)(?![a-z0-9])"),
    re.compile(r"(?:邮编|邮政编码)[是为: ]{0,3}(?P<code>\d{6})(?!\d)"),
    re.compile(r"(?P<code>p\.? ?o\.? ?box \d{1,6})"),
)  # fmt: skip

# --- Chinese ---------------------------------------------------------------------------------------------------------

_N: Final = r"(?:[0-9]{1,5}[a-z]?|[a-z][0-9]{0,4}|[一二三四五六七八九十百零〇]{1,6})"
_NOT_IN_NAME: Final = frozenset("在是到址来去住于送寄从往和我你他她它们了就请这那的，。：,.:;!?、") | {HIDDEN}
_LONGEST_NAME: Final = 24
_NUMBERED: Final = re.compile(r"[0-9]|[一二三四五六七八九十百零〇](?:号|弄|栋|幢|座)")
_ROOM: Final = rf" ?(?:{_N}(?:弄|支弄|号楼|号院|号|栋|幢|座|楼|层|单元|室|户|房))"
_HAN: Final = r"[\u4e00-\u9fff]"
_ON_A_ROAD: Final = re.compile(
    rf"(?:路|街|大道|巷|弄|胡同|里|道) ?(?:{_N}(?:弄|号))(?:{_ROOM}|{_HAN}{{2,8}}?{_ROOM}){{0,5}}(?:[0-9]{{3,4}}(?![0-9]))?"
)
_IN_A_HOUSE: Final = re.compile(
    rf"(?:{_N}(?:号楼|栋|幢|座)) ?(?:{_N}单元)? ?(?:{_N}(?:楼|层))? ?(?:{_N}(?:室|户|房|号)|[0-9]{{3,4}}(?![0-9]))"
)


def find_addresses(text: str, cased: str) -> list[Span]:
    """The spans of street addresses and of postcodes that are named as such."""
    if not _NUMBERED.search(text):
        return []
    found = [_grown(match.span(), text, cased) for match in _PROPER_STREET.finditer(cased)]
    for shape in _STREETS:
        streets = (match for match in shape.finditer(text) if not _NO_NAME.intersection(match["name"].split()))
        found += [_grown(match.span(), text, cased) for match in streets]
    found += [match.span() for match in _GERMAN.finditer(text)]
    found += [match.span("code") for shape in _CODES for match in shape.finditer(text)]
    if not text.isascii():
        for match in _ON_A_ROAD.finditer(text):
            name = _name_before(text, match.start())
            found += [(name, match.end())] if name < match.start() else []
        found += [(_name_before(text, match.start()), match.end()) for match in _IN_A_HOUSE.finditer(text)]
    return found


def _name_before(text: str, end: int) -> int:
    """Where the name of a road or an estate begins that ends here: the Chinese characters up to a word that is none."""
    start = end
    while end - start < _LONGEST_NAME and start and text[start - 1] >= "\u4e00" and text[start - 1] not in _NOT_IN_NAME:
        start -= 1
    return start


def _grown(span: Span, text: str, cased: str) -> Span:
    """The street with the flat before it and the flat, town and postcode after it."""
    start, end = span
    before = _BEFORE.search(text[max(0, start - 24) : start])
    for pattern, by_case in _AFTER:
        after = pattern.match(cased if by_case else text, end)
        end = after.end() if after else end
    return start - (len(before[0]) if before else 0), end
