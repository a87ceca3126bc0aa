"""The mutants that no test can or should notice, each with the reason; the list is kept true by the run itself."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.mutation.mutants import Mutant

LIST: Final = Path(__file__).with_name("argued.toml")
_KEYS: Final = {"in", "was", "now", "why"}


class Wrong(Exception):
    """The list says something that is not so."""


def argued(found: Mapping[str, Sequence[Mutant]], text: str | None = None) -> dict[tuple[str, str], str]:
    """{(file, name of a mutant): why nobody needs to notice it} for the files that are looked at.

    Raises:
        Wrong: an entry names no mutant, one that another entry names too, or gives no reason.
    """
    listed: dict[str, Any] = tomllib.loads(LIST.read_text() if text is None else text)
    reasons: dict[tuple[str, str], str] = {}
    for file, mutants in found.items():
        for entry in listed.get(file, []):
            if entry.keys() != _KEYS or len(entry["why"].split()) < 4:
                raise Wrong(f"{file}: {entry} needs exactly {sorted(_KEYS)}, and a reason of more than three words")
            nows = entry["now"] if isinstance(entry["now"], list) else [entry["now"]]
            for now in nows:
                named = [m for m in mutants if (m.inside, m.was, m.now) == (entry["in"], entry["was"], now)]
                if not named:
                    raise Wrong(f"{file}: there is no mutant {entry['in']}: {entry['was']}  →  {now}")
                for mutant in named:
                    if (file, mutant.name) in reasons:
                        raise Wrong(f"{file}: {mutant.name} is argued twice")
                    reasons[file, mutant.name] = " ".join(entry["why"].split())
    return reasons
