"""Plain-text tables of numbers."""

from collections.abc import Mapping

Row = dict[str, float]


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A row per name, numbers to four digits; a dash where a row lacks a column."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    first = max(len(name) for name in rows)
    widths = [max(8, len(column)) + 2 for column in columns]
    lines = [title, " " * first + "".join(map(str.rjust, columns, widths))]
    for name, row in rows.items():
        cells = [f"{row[c]:.4g}" if c in row else "-" for c in columns]
        lines.append(name.ljust(first) + "".join(map(str.rjust, cells, widths)))
    return "\n".join(lines)


def show(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table under its title."""
    print("\n" + table(title, rows), flush=True)
