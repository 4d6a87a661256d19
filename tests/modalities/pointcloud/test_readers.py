"""Files of every format, made here, and files that cannot be read."""

from __future__ import annotations

import io
import struct

import h5py
import numpy as np
import pytest
import torch

from mmssl.modalities.pointcloud.adapter import PointCloud
from mmssl.modalities.pointcloud.mesh import Mesh

torch.set_num_threads(1)  # everything is small: threads would only wait for one another

POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.5], [0.25, -2, 3e-3]], dtype=np.float32)
SQUARE = [[0, 1, 2], [0, 2, 3]]  # the square 0 1 2 3, cut from its first corner


def decode(blob):
    return PointCloud().decode(blob if isinstance(blob, bytes) else blob.encode())


def is_cloud(sample):
    assert isinstance(sample, torch.Tensor) and sample.dtype == torch.float32
    assert torch.equal(sample, torch.from_numpy(POINTS))


def is_mesh(sample, faces=SQUARE):
    assert isinstance(sample, Mesh) and sample.vertices.dtype == torch.float32
    assert torch.equal(sample.vertices, torch.from_numpy(POINTS)) and sample.faces.tolist() == faces


def rows(points=POINTS):
    return "\n".join(" ".join(repr(float(v)) for v in point) for point in points)


def header(order, faces, extra=""):
    return (
        f"ply\nformat {order} 1.0\ncomment made here\nelement vertex 5\nproperty float x\nproperty float y\n"
        f"property float z\n{extra}element face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    )


@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_ascii_ply(line):
    is_cloud(decode((header("ascii", 0) + rows() + "\n").replace("\n", line)))
    is_mesh(decode((header("ascii", 1) + rows() + "\n4 0 1 2 3\n").replace("\n", line)))
    is_mesh(decode(header("ascii", 2) + rows() + "\n3 0 1 2\n3 0 2 3"))


@pytest.mark.parametrize(("order", "sign"), [("binary_little_endian", "<"), ("binary_big_endian", ">")])
@pytest.mark.parametrize("colour", [False, True])
def test_binary_ply(order, sign, colour):
    head = header(order, "{}", "property uchar red\n" if colour else "")
    vertices = b"".join(struct.pack(f"{sign}3f", *p) + (b"\x07" if colour else b"") for p in POINTS)

    def faces(*polygons):
        return b"".join(struct.pack(f"{sign}B{len(p)}i", len(p), *p) for p in polygons)

    is_cloud(decode(head.format(0).encode() + vertices))
    is_mesh(decode(head.format(2).encode() + vertices + faces(*SQUARE)))
    is_mesh(decode(head.format(1).encode() + vertices + faces([0, 1, 2, 3])))
    mixed = faces([0, 1, 2, 3], [0, 1, 4])
    is_mesh(decode(head.format(2).encode() + vertices + mixed), [*SQUARE, [0, 1, 4]])


def test_ply_with_doubles_and_elements_in_any_order():
    head = (
        "ply\nformat binary_little_endian 1.0\nelement thing 2\nproperty list uchar short a\nproperty short b\n"
        "element vertex 5\nproperty double z\nproperty double x\nproperty double y\nend_header\n"
    )
    things = struct.pack("<B3hh", 3, 1, 2, 3, 9) + struct.pack("<B1hh", 1, 5, 9)
    vertices = b"".join(struct.pack("<3d", p[2], p[0], p[1]) for p in POINTS)
    is_cloud(decode(head.encode() + things + vertices))


def test_off():
    body = rows() + "\n4 0 1 2 3\n"
    is_mesh(decode("OFF\n# a comment\n5 1 4\n" + body))
    is_mesh(decode("OFF5 1 4\n" + body))  # as some of ModelNet40's files begin
    is_mesh(decode("OFF 5 2 0\n" + rows() + "\n3 0 1 2 255 0 0\n3 0 2 3\n"))
    coloured = "\n".join(line + " 9 8 7 255" for line in rows().split("\n"))
    is_cloud(decode("COFF\n5 0 0\n" + coloured))


def test_obj():
    vertices = "\n".join("v " + line for line in rows().split("\n"))
    is_cloud(decode(f"# made here\no thing\n{vertices}\n"))
    is_mesh(decode(f"mtllib a.mtl\n{vertices}\nvt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1 4/1/1\n"))
    is_mesh(decode(f"{vertices}\nf -5 -4 -3\nf -5//1 -3//1 -2//1\n"))


def saved(save, *args, **kwargs):
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def test_numpy_and_hdf5():
    wide = np.concatenate([POINTS, POINTS], 1).astype(np.float64)  # normals behind the coordinates
    is_cloud(decode(saved(np.save, POINTS)))
    is_cloud(decode(saved(np.save, wide)))
    is_cloud(decode(saved(np.savez, points=wide, label=np.array(3))))
    is_cloud(decode(saved(np.savez_compressed, whatever=POINTS)))
    is_mesh(decode(saved(np.savez, vertices=POINTS, faces=np.array(SQUARE))))
    file = io.BytesIO()
    with h5py.File(file, "w") as held:
        held["points"], held["faces"] = POINTS, np.array(SQUARE, dtype=np.uint16)
    is_mesh(decode(file.getvalue()))


def test_text():
    is_cloud(decode(rows()))
    is_cloud(
        decode("# x y z nx\n" + "\n".join(line.replace(" ", ", ") + ", 1.0" for line in rows().split("\n")) + "\n")
    )


BROKEN = POINTS.copy()
BROKEN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "empty"),
        (b"\x00\xff\xfe\x80", "neither a known binary format of points nor text"),
        ("some words\nand more", "not a readable cloud or mesh"),
        ("1 2 3\n4 5", "not equally many"),
        ("1 2\n3 4", r"array \(n, 3\).*\(2, 2\)"),
        (rows(BROKEN), "1 of 5 points have a coordinate that is not finite"),
        (saved(np.save, np.full((4, 3), np.inf)), "4 of 4 points"),
        (saved(np.save, np.zeros((0, 3))), "at least 1"),
        (saved(np.save, np.zeros((2, 5, 3))), "holds 2 clouds of 5 points.*data=clouds data.root=FILE"),
        (saved(np.savez, a=POINTS, b=POINTS), "no array is called points.*there is: a, b"),
        (saved(np.savez, points=POINTS, faces=np.array([[0, 1, 5]])), "names vertex 5, but there are 5"),
        (saved(np.savez, points=POINTS, faces=np.array([[0, 0, 1]])), "no face of the mesh has an area"),
        ("OFF\n5 1 0\n" + rows(), "5 vertices and 1 faces are announced, but 5 lines follow"),
        (header("ascii", 1) + rows(), "records of 'face' are announced, but the file ends before"),
        (header("binary_little_endian", 0).encode() + b"\x00" * 59, "not a readable PLY"),
        ("ply\nformat ascii 1.0\nelement vertex 5", "no end_header"),
        ("ply\nelement vertex 5\nend_header\n", "names no format"),
        ("ply\nformat ascii 1.0\nelement vertex five\nend_header\n", "header line 'element vertex five'"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "'y'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(blob, words):
    with pytest.raises(ValueError, match=words):
        decode(blob)


def test_pickles_are_not_opened():
    with pytest.raises(ValueError, match="allow_pickle"):
        decode(saved(np.save, np.array([{"a": 1}], dtype=object), allow_pickle=True))
