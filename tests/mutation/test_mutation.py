"""The tool that plants small mistakes: it finds what tests miss, calls nothing missed that they notice, and breaks nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutation.__main__ import ROOT, survey
from tests.mutation.argued import Wrong, argued
from tests.mutation.attempts import Attempts, Unhealthy, untouched
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.report import Fate, page
from tests.mutation.targets import TARGETS

SOURCE = b'''"""What it is for."""

from math import floor

LIMIT = 64


class Counter:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count: int = 0

    def add(self, step: int = 1) -> None:
        """Counts."""
        assert step > 0, "a step forward"
        if self.count + step > LIMIT or step < 0:
            raise ValueError("too many of them")
        self.count += floor(step)


def first(items, fallback=None):
    try:
        return sorted(items)[0]
    except (IndexError, KeyError):
        return fallback
'''


def names(source: bytes = SOURCE) -> list[str]:
    return [mutant.name for mutant in mutants(source)]


def test_every_mutant_is_one_edit_that_compiles_and_has_a_name_of_its_own() -> None:
    found = mutants(SOURCE)
    assert len({mutant.name for mutant in found}) == len({mutant.source for mutant in found}) == len(found) > 30
    for mutant in found:
        compile(mutant.source, "mutant", "exec")
        assert mutant.source != SOURCE


@pytest.mark.parametrize(
    "wanted",
    [
        "the module: LIMIT = 64  →  LIMIT = 0",
        "the module: LIMIT = 64  →  LIMIT = 64000",
        "Counter.__init__: self.count: int = 0  →  pass",
        "Counter.add: self.count + step > LIMIT or step < 0  →  (self.count + step > LIMIT and step < 0)",
        "Counter.add: self.count + step > LIMIT or step < 0  →  (step < 0)",
        "Counter.add: self.count + step > LIMIT or step < 0  →  True",
        "Counter.add: self.count + step > LIMIT or step < 0  →  False",
        "Counter.add: self.count + step > LIMIT  →  (self.count + step >= LIMIT)",
        "Counter.add: self.count + step  →  (self.count - step)",
        'Counter.add: raise ValueError("too many of them")  →  pass',
        'Counter.add: ValueError("too many of them")  →  RuntimeError("too many of them")',
        "Counter.add: self.count += floor(step)  →  pass",
        "Counter.add: self.count += floor(step)  →  self.count -= floor(step)",
        "first: sorted(items)[0]  →  None",
        "first: sorted(items)[0]  →  (items)[0]",
        "first: (IndexError, KeyError)  →  ()",
        "first: (IndexError, KeyError)  →  (KeyError,)",
        "first: (IndexError, KeyError)  →  BaseException",
    ],
)
def test_the_mistakes_that_people_make_are_among_them(wanted: str) -> None:
    assert wanted in names()


def test_what_no_test_could_notice_is_left_alone() -> None:
    """Docstrings, slots, imports, asserts, and what is said to people."""
    for name in names():
        assert not any(word in name for word in ("__slots__", "What it is for", "Counts", "import", "forward", "themX"))


def test_a_name_stays_when_the_lines_move() -> None:
    assert names(b"# a comment\n" + SOURCE) == names()


def test_the_list_of_the_argued_is_kept_true() -> None:
    found = {"thing.py": mutants(SOURCE)}
    entry = '[["thing.py"]]\nin = "the module"\nwas = "LIMIT = 64"\nnow = "{}"\nwhy = "{}"\n'
    why = "no test counts that far"
    assert argued(found, entry.format("LIMIT = 64000", why)) == {
        ("thing.py", "the module: LIMIT = 64  →  LIMIT = 64000"): why
    }
    for wrong in (
        entry.format("LIMIT = 65", why),
        entry.format("LIMIT = 0", "obvious"),
        entry.format("LIMIT = 0", why) * 2,
        entry.format("LIMIT = 0", why).replace("why", "because"),
    ):
        with pytest.raises(Wrong):
            argued(found, wrong)
    assert argued({}, entry.format("nonsense", why)) == {}  # files that are not looked at are not judged


def test_everything_that_is_argued_about_the_platform_exists() -> None:
    argued({file: mutants((ROOT / file).read_bytes()) for file in TARGETS})


def test_modules_that_rest_on_the_mutated_one_are_never_imported_beforehand() -> None:
    free = untouched(ROOT, "actors/activation.py")
    assert {"domain.commands", "storage.memory", "actors.router"} <= set(free)
    assert not {"actors.activation", "actors.turn", "actors.host", "tests.support.runtime"} & set(free)


def test_the_report_names_what_survived_and_why_others_may() -> None:
    fates = [
        Fate("a.py", 3, "constant", "f: 1  →  2", "survived", ""),
        Fate("a.py", 4, "constant", "f: 3  →  4", "argued", "nobody counts that far"),
        Fate("a.py", 5, "constant", "f: 5  →  6", "killed", "tests/test_a.py::test_five"),
    ]
    text = page(fates, {"commit": "abc"})
    assert "| a.py | 3 | 1 | 1 | 1 | 1 |" in text
    assert "- line 3, `f: 1  →  2`" in text
    assert "nobody counts that far\n- line 4" in text.replace("\n\n", "\n")
    assert "| 1 | tests/test_a.py::test_five |" in text


# --- the whole of it, on a small tree ----------------------------------------------------------------------------

THING = b"""def double(n):
    return n + n


def half(n):
    if n == 0:
        return 0
    while n % 2 == 1:
        n = n + 1
    return n // 2
"""
TESTS = """import os
import thing

def test_double():
    assert thing.double(2) == 4
    assert "half" in open(thing.__file__).read()

def test_half():
    assert thing.half(6) == 3
    assert thing.half(3) == 2
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    shutil.copytree(
        ROOT / "tests" / "mutation", root / "tests" / "mutation", ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "tests" / "__init__.py").touch()
    (root / "tests" / "test_thing.py").write_text(TESTS)
    (root / "thing.py").write_bytes(THING)
    return root


@pytest.fixture
def attempts(tree: Path, tmp_path: Path) -> Iterator[Attempts]:
    with Attempts(tree, tmp_path / "work", at_least_s=2.0) as made:
        yield made


def of(kind: str, text: str) -> Mutant:
    return next(mutant for mutant in mutants(THING) if mutant.kind == kind and text in mutant.name)


def test_a_small_tree_from_its_tests_to_the_fates_of_its_mutants(attempts: Attempts, tree: Path) -> None:
    reach = attempts.reach(["thing.py"], ["tests/test_thing.py"])
    double, half = (f"tests/test_thing.py::test_{name}" for name in ("double", "half"))
    assert set(reach.seconds) == {double, half}
    assert (reach.lines["thing.py"][2], reach.lines["thing.py"][10]) == ([double], [half])
    assert 7 not in reach.lines["thing.py"]

    noticed = of("operator", "(n - n)")
    unnoticed = of("never", "n == 0")
    hanging = of("statement left out", "n = n + 1")
    unreached = of("constant", "return 0  →  return 1")
    fates = survey(attempts, reach, "thing.py", [noticed, unnoticed, hanging, unreached])

    assert [(fate.how, fate.by) for fate in fates] == [
        ("killed", double),
        ("survived", ""),
        ("killed", half),
        ("survived", ""),
    ]
    assert "Timeout" in fates[2].said
    assert [fate.reached for fate in fates] == [True, True, True, False]
    assert attempts.run(reach.seconds).failed == ""  # everything is as it was
    assert (tree / "thing.py").read_bytes() == THING


def test_tests_that_fail_by_themselves_are_not_believed(tree: Path, tmp_path: Path) -> None:
    (tree / "tests" / "test_thing.py").write_text(TESTS + "\ndef test_wrong():\n    assert thing.double(1) == 3\n")
    with Attempts(tree, tmp_path / "other") as made, pytest.raises(Unhealthy, match="test_wrong"):
        made.reach(["thing.py"], ["tests/test_thing.py"])
