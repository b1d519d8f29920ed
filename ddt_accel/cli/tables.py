"""Tables that lose no word: as wide as they are, folded between words where that fits, else a block for each row."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

# Wider than any table, for a console that must not fold one.
_UNBOUNDED = 10_000


def laid_out(table: Table, width: int | None, *, encoding: str, errors: str, colour: bool = False) -> str:
    """The text of a table of plain strings in `width` columns, or in lines as long as its rows where that is None.

    Only words that are longer than a whole line are ever broken.
    """
    heads, *rows = [
        [cell.encode(encoding, errors).decode(encoding) for cell in map(str, row)]  # as wide as it will be written
        for row in zip(*([column.header, *column.cells] for column in table.columns), strict=True)
    ]
    console = Console(width=_UNBOUNDED, highlight=False, markup=False, emoji=False, force_terminal=colour or None)
    natural, least = [], []
    for index in range(len(heads)):
        measured = [Measurement.get(console, console.options, row[index]) for row in (heads, *rows)]
        natural.append(max(one.maximum for one in measured))
        least.append(max(one.minimum for one in measured))
    frame = 3 * len(heads) + 1  # a border and the space to both sides of a cell
    if width is not None and sum(least) + frame > width:
        return _blocks(heads, rows, width)
    while width is not None and sum(natural) + frame > width:
        slack = [have - need for have, need in zip(natural, least, strict=True)]
        widest = max((i for i in range(len(heads)) if slack[i]), key=natural.__getitem__)
        natural[widest] -= 1
    columns = [
        Column(head, width=size, justify=column.justify, overflow="fold")
        for head, size, column in zip(heads, natural, table.columns, strict=True)
    ]
    plain = Table(*columns, box=box.SIMPLE_HEAD if encoding.startswith("utf") else box.ASCII, title=table.title)
    for cells, row in zip(rows, table.rows, strict=True):
        plain.add_row(*cells, end_section=row.end_section)
    with console.capture() as captured:
        console.print(plain)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n") + "\n"


def _blocks(heads: list[str], rows: list[list[str]], width: int) -> str:
    """For each row its cells below one another, each beside its head; what is empty is left out."""
    lines = []
    for row in rows:
        indent = ""
        for head, cell in zip(heads, row, strict=True):
            if cell:
                deeper = indent + "    "
                told = f"{head}: {cell}" if head else cell
                lines += textwrap.wrap(
                    told, width, initial_indent=indent, subsequent_indent=deeper, break_on_hyphens=False
                )
                indent = "  "
    return "\n".join(lines) + "\n"
