"""The pages that a newcomer reads are whole, and what they point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_begins_with_its_title_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# ")
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


def test_the_readme_says_what_it_is_the_two_commands_a_picture_a_session_and_figures() -> None:
    text = (ROOT / "README.md").read_text()
    for part in ("# RenovEasy", "make up", "make test", "architecture.svg", "## A session", "## Measured"):
        assert part in text
