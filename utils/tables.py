"""Lines of cells as a table: in columns for a terminal, or as Markdown. The first line is the head.

Of the columns the first ``left`` are flush left, the others, of numbers, flush right.
"""

from collections.abc import Sequence

Line = Sequence[str]


def aligned(lines: Sequence[Line], left: int, least: int = 0) -> str:
    """Columns two spaces apart, those flush right of at least this width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths = [width if i < left else max(width, least) for i, width in enumerate(widths)]
    justify = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    rows = (
        [pad(cell, width) for pad, cell, width in zip(justify, line, widths, strict=True)]
        for line in lines
    )
    return "\n".join(map("  ".join, rows))


def markdown(lines: Sequence[Line], left: int) -> str:
    """As it stands in a file or on TensorBoard's page. Cells are not escaped."""
    head, *rows = lines
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))
