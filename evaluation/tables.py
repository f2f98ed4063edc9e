"""Tables of numbers and words, as plain text and as Markdown."""

from collections.abc import Mapping

from utils import tables

LEAST = 8  # characters of a column
Row = dict[str, float]
Cells = Mapping[str, float | str]  # of a row, by column


def table(title: str, rows: Mapping[str, Cells]) -> str:
    """A row per name, numbers to four digits; a dash where a row lacks a column."""
    return f"{title}\n{tables.aligned(lines_of(rows), left=1, least=LEAST)}"


def markdown(rows: Mapping[str, Cells]) -> str:
    """The same as a table of Markdown."""
    return tables.markdown([list(map(escaped, line)) for line in lines_of(rows)], left=1)


def lines_of(rows: Mapping[str, Cells]) -> list[list[str]]:
    """The head and the rows, as text."""
    columns = columns_of(rows)
    return [
        ["", *columns],
        *([name, *(cell(row, c) for c in columns)] for name, row in rows.items()),
    ]


def escaped(text: str) -> str:
    """Text that stays within its cell of Markdown, and is no markup."""
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|`*_<>[]#" else c for c in text)


def columns_of(rows: Mapping[str, Cells]) -> list[str]:
    """The columns of all rows, in the order in which they come."""
    return list(dict.fromkeys(column for row in rows.values() for column in row))


def cell(row: Cells, column: str) -> str:
    """As it is shown: a whole number in full, another to four digits."""
    value = row.get(column, "-")
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def show(title: str, rows: Mapping[str, Cells]) -> None:
    """Print a table under its title."""
    print("\n" + table(title, rows), flush=True)
