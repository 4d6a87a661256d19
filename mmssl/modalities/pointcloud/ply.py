"""The Polygon File Format (Turk 1994): ASCII, little and big endian, any elements and properties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmssl.modalities.pointcloud.readers import fan

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDER = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass
class _Element:
    """One kind of record: its properties are (name, type) or, for lists, (name, type of the count, type)."""

    name: str
    count: int
    properties: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def flat(self) -> bool:
        return all(len(one) == 2 for one in self.properties)


def read_ply(blob: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertices (v, 3), and faces (f, 3) cut into triangles where there are any.

    Raises:
        ValueError: for a broken header, missing coordinates or a file that ends too early.
    """
    order, elements, body = _header(blob)
    try:
        found = _ascii(body, elements) if order == "" else _binary(body, elements, order)
        vertex = found["vertex"]
        points = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], 1)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"not a readable PLY file: {error}") from error
    face = found.get("face", {})
    lists = face.get("vertex_indices", face.get("vertex_index"))
    if lists is None or not len(lists):
        return points, None
    if isinstance(lists, np.ndarray) and lists.shape[1] == 3:
        return points, lists
    return points, fan([[int(place) for place in polygon] for polygon in lists])


def _header(blob: bytes) -> tuple[str, list[_Element], bytes]:
    end = blob.find(b"end_header")
    if end < 0:
        raise ValueError("not a readable PLY file: its header has no end_header")
    order, elements = None, list[_Element]()
    for line in blob[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        try:
            if words[0] == "format":
                order = _ORDER[words[1]]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
            elif words[0] == "property":
                types = [_TYPES[word] for word in (words[2:4] if words[1] == "list" else words[1:2])]
                elements[-1].properties.append((words[-1], *types))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"not a readable PLY file: header line {line!r}") from error
    if order is None:
        raise ValueError("not a readable PLY file: its header names no format")
    newline = blob.index(b"\n", end)
    return order, elements, blob[newline + 1 :]


def _ascii(body: bytes, elements: list[_Element]) -> dict[str, dict[str, Any]]:
    lines, first, found = body.decode("ascii").split("\n"), 0, {}
    for element in elements:
        rows = [line.split() for line in lines[first : first + element.count]]
        first += element.count
        if len(rows) < element.count or (element.count and not rows[-1]):
            raise ValueError(f"{element.count} records of {element.name!r} are announced, but the file ends before")
        if element.flat:
            table = np.array(rows, dtype=np.float64).reshape(element.count, -1)
            found[element.name] = {one[0]: table[:, i] for i, one in enumerate(element.properties)}
        else:
            found[element.name] = _columns(element, [_ascii_row(element, row) for row in rows])
    return found


def _ascii_row(element: _Element, words: list[str]) -> list[Any]:
    row, place = [], 0
    for one in element.properties:
        if len(one) == 2:
            row.append(float(words[place]))
        else:
            count = int(words[place])
            row.append([float(word) for word in words[place + 1 : place + 1 + count]])
            place += count
        place += 1
    return row


def _binary(body: bytes, elements: list[_Element], order: str) -> dict[str, dict[str, Any]]:
    place, found = 0, {}
    for element in elements:
        sizes = _sizes(body, place, element, order)
        kind = np.dtype([
            part for one, size in zip(element.properties, sizes, strict=True)
            for part in ([(one[0], order + one[1])] if len(one) == 2
                         else [(f"{one[0]} count", order + one[1]), (one[0], order + one[2], (size,))])
        ])  # fmt: skip
        if place + kind.itemsize * element.count <= len(body):
            table = np.frombuffer(body, kind, element.count, place)
            lists = [(one[0], size) for one, size in zip(element.properties, sizes, strict=True) if len(one) == 3]
            if all((table[f"{name} count"] == size).all() for name, size in lists):
                found[element.name] = {one[0]: table[one[0]] for one in element.properties}
                place += kind.itemsize * element.count
                continue
        rows = []
        for _ in range(element.count):  # lists of unequal length: one record after the other
            row, place = _binary_row(body, place, element, order)
            rows.append(row)
        found[element.name] = _columns(element, rows)
    return found


def _sizes(body: bytes, place: int, element: _Element, order: str) -> list[int]:
    """How many values each property of the first record has; most files have equally many in all."""
    if not element.count:
        return [1] * len(element.properties)
    row, _ = _binary_row(body, place, element, order)
    return [len(value) if isinstance(value, np.ndarray) else 1 for value in row]


def _binary_row(body: bytes, place: int, element: _Element, order: str) -> tuple[list[Any], int]:
    row = []
    for one in element.properties:
        value = np.frombuffer(body, order + one[1], 1, place)[0]
        place += value.itemsize
        if len(one) == 3:
            value = np.frombuffer(body, order + one[2], int(value), place)
            place += value.nbytes
        row.append(value)
    return row, place


def _columns(element: _Element, rows: list[list[Any]]) -> dict[str, Any]:
    return {one[0]: [row[i] for row in rows] for i, one in enumerate(element.properties)}
