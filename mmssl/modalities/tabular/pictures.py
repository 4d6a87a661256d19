"""Rows of a table as pictures: names of columns and values as text."""

from __future__ import annotations

import numpy as np

from mmssl.modalities.tabular.table import Column, Row

_LINE, _NAME, _VALUE, _GAP = 15, 96, 112, 4
_MOST = 24  # lines of a picture; of more columns the rest is counted
_INK, _FAINT, _GREY, _RULE = (29, 33, 39), (110, 117, 125), (190, 195, 200), (226, 229, 232)


def draw(row: Row) -> np.ndarray:
    """A row, one line for each column, (h, w, 3) uint8; hidden cells are grey boxes, missing ones say so."""
    from PIL import Image, ImageDraw, ImageFont

    table, font = row.table, ImageFont.load_default(11)
    shown = min(len(table.columns), _MOST)
    rest = len(table.columns) - shown
    sheet = Image.new("RGB", (_NAME + _VALUE + 3 * _GAP, (shown + (rest > 0)) * _LINE + 1), "white")
    pen = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, width: int, ink: tuple[int, int, int]) -> None:
        whole = text
        while text and font.getlength(text + ("" if text == whole else "…")) > width:
            text = text[:-1]
        pen.text((x, y + 1), text if text == whole else text + "…", fill=ink, font=font)

    right = _NAME + 2 * _GAP
    for place in range(shown):
        y, column = place * _LINE, table.columns[place]
        pen.line((0, y, sheet.width, y), fill=_RULE)
        write(_GAP, y, column.name, _NAME, _FAINT)
        if table.hidden is not None and table.hidden[row.number, place]:
            pen.rectangle((right, y + 2, right + _VALUE, y + _LINE - 2), fill=_GREY)
            continue
        value = row.value(place)
        missing = bool(np.isnan(value))
        write(right, y, "missing" if missing else text_of(column, value), _VALUE, _GREY if missing else _INK)
    if rest:
        write(_GAP, shown * _LINE, f"and {rest} more columns", sheet.width - 2 * _GAP, _FAINT)
    pen.line((0, sheet.height - 1, sheet.width, sheet.height - 1), fill=_RULE)
    return np.asarray(sheet)


def text_of(column: Column, value: float) -> str:
    """A value as text: the category, a whole number, or seven digits."""
    if column.kind == "categorical":
        return column.categories[int(value)]
    return str(round(value)) if column.whole else f"{value:.7g}"
