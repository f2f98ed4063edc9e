"""README and docs: lines of 100 columns, links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_wrapped(path):
    """But for tables, pictures, and what a link makes longer."""
    lines = path.read_text().splitlines()
    assert not [ln for ln in lines if len(ln) > 100 and not re.match(r"\||!\[|.*https?:", ln)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    assert not list(broken(path, path.read_text()))


def test_broken_links_are_found():
    """The control."""
    text = "[a](none.md) [b](design.md#no-such-title) [c](../README.md#recipes) [d](#floors)"
    assert list(broken(ROOT / "docs/design.md", text)) == ["none.md", "design.md#no-such-title"]


def broken(path, text):
    """The links of a document whose file or heading does not exist."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        found = path.parent / target if target else path
        if target.startswith("http") or (found.exists() and (not anchor or anchor in of(found))):
            continue
        yield link


def of(path):
    """The anchors of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
