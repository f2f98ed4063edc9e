"""Tables of numbers and words, as plain text and as Markdown."""

from collections.abc import Mapping

Row = dict[str, float]
Cells = Mapping[str, float | str]  # of a row, by column


def table(title: str, rows: Mapping[str, Cells]) -> str:
    """A row per name, numbers to four digits; a dash where a row lacks a column."""
    columns = columns_of(rows)
    first = max(len(name) for name in rows)
    widths = [
        max(8, len(name), *(len(cell(row, name)) for row in rows.values())) + 2 for name in columns
    ]
    lines = [title, " " * first + "".join(map(str.rjust, columns, widths))]
    for name, row in rows.items():
        cells = [cell(row, c) for c in columns]
        lines.append(name.ljust(first) + "".join(map(str.rjust, cells, widths)))
    return "\n".join(lines)


def markdown(rows: Mapping[str, Cells]) -> str:
    """The same as a table of Markdown."""
    columns = columns_of(rows)
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(cell(row, c) for c in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)


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
