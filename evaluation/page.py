"""Parts of a page: sections, tables, pictures, a slider over pictures. All text is escaped."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.embedded import Embedded
from evaluation.markup import Markup, tag
from evaluation.tables import Cells, cell, columns_of

STYLE, SCRIPT = (
    Markup(Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8"))
    for kind in ("css", "js")
)
# The page may load nothing, whatever is in it.
NO_NETWORK = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
NO_NETWORK += "script-src 'unsafe-inline'"
MOST_ROWS, MOST_LETTERS = 100, 200  # of a table, of a text
ENLARGED = 700  # pixels up to which small pictures are enlarged


def document(title: str, *content: str) -> str:
    """A whole page of HTML."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=NO_NETWORK),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    body = tag("body", tag("main", *content), tag("script", SCRIPT))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def section(title: str, *content: str) -> Markup:
    """A heading and what is under it; nothing where that is empty."""
    return tag("section", tag("h2", title), *content) if any(content) else Markup()


def folded(title: str, *content: str) -> Markup:
    """What is shown when it is asked for, and in print."""
    return tag("details", tag("summary", title), *content)


def soft(text: str) -> Markup:
    """A paragraph beside the matter."""
    return tag("p", short(text), class_="soft")


def facts(rows: Mapping[str, str]) -> Markup:
    """Names and values in boxes."""
    boxes = [tag("div", tag("dt", name), tag("dd", short(fact))) for name, fact in rows.items()]
    return tag("dl", *boxes, class_="facts")


def words(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Markup:
    """A table of text."""
    rows = [tag("tr", *(tag("td", short(text)) for text in line)) for line in lines]
    return wide([tag("th", title, scope="col") for title in head], rows)


def numbers(rows: Mapping[str, Cells]) -> Markup:
    """A table of numbers, a row per name."""
    columns = columns_of(rows)
    found = []
    for name, row in rows.items():
        cells = (tag("td", short(cell(row, column)), class_="number") for column in columns)
        found.append(tag("tr", tag("th", short(name), scope="row"), *cells))
    titles = (tag("th", short(column), scope="col", class_="number") for column in columns)
    return wide([tag("td"), *titles], found)


def wide(head: Sequence[Markup], rows: Sequence[Markup]) -> Markup:
    """A table in a box of its own, which scrolls where it is wider than the page."""
    body = tag("tbody", *rows[:MOST_ROWS])
    rest = [soft(f"and {len(rows) - MOST_ROWS:,} more rows")] if rows[MOST_ROWS:] else []
    box = tag("div", tag("table", tag("thead", tag("tr", *head)), body), class_="wide", tabindex=0)
    return Markup("".join([box, *rest]))


def image(picture: Embedded, alt: str) -> Markup:
    """A picture; a small one is enlarged by a whole number, so that its pixels stay squares."""
    factor = max(1, ENLARGED // picture.width)
    size = {"width": factor * picture.width, "height": factor * picture.height}
    kind = "enlarged" if factor > 1 else None
    return tag("img", src=picture.source, alt=short(alt), class_=kind, **size)


def figure(picture: Embedded | None, alt: str, caption: str) -> Markup:
    """A picture with words under it; the words alone where it cannot be read."""
    shown = image(picture, alt) if picture else soft("This picture cannot be read.")
    return tag("figure", shown, tag("figcaption", short(caption)))


def slider(frames: Mapping[str, Markup]) -> Markup:
    """One of the figures at a time, the last at first, chosen with a slider; by what it is of."""
    last = len(frames) - 1
    shown = [
        tag("div", frame, data_when=when, hidden=i != last)
        for i, (when, frame) in enumerate(frames.items())
    ]
    knob = {"min": 0, "max": last, "value": last, "autocomplete": "off"}
    label = tag("label", "Over time", for_="time")
    control = tag("div", label, tag("input", type="range", id="time", **knob), class_="slider")
    return tag("div", *([control] if last else []), *shown, id="frames")


def short(text: str, most: int = MOST_LETTERS) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
