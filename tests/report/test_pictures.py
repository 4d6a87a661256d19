import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from mmssl.report.embedding import MOST_POINTS, embedding_map, project
from mmssl.report.pictures import enlarge, grid, neighbour_sheet, reconstruction_sheet, save, save_png, to_rgb

SVG = "{http://www.w3.org/2000/svg}"
RED, BLUE = (213, 94, 0), (0, 114, 178)


def flat(value, side=28):
    return np.full((side, side, 3), value, np.uint8)


def test_to_rgb_takes_grey_colour_and_many_channels():
    grey = np.array([[0.0, 0.5], [1.0, 2.0]])
    np.testing.assert_array_equal(to_rgb(grey)[..., 0], [[0, 128], [255, 255]])
    assert to_rgb(grey).shape == to_rgb(grey[..., None]).shape == (2, 2, 3)
    many = np.arange(2 * 2 * 5, dtype=np.uint8).reshape(2, 2, 5)
    np.testing.assert_array_equal(to_rgb(many), many[..., :3])
    two = to_rgb(many[..., :2])
    np.testing.assert_array_equal(two[..., :2], many[..., :2])
    assert not two[..., 2].any()
    np.testing.assert_array_equal(to_rgb([[np.nan, np.inf, -np.inf]])[0, :, 0], [0, 255, 0])
    np.testing.assert_array_equal(to_rgb(np.array([[True, False]]))[0, :, 0], [255, 0])


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 2, 2, 3)), np.array([["a"]]), np.zeros((2, 2, 0))])
def test_to_rgb_refuses_what_is_no_image(bad):
    with pytest.raises(ValueError, match="an image is"):
        to_rgb(bad)


def test_enlarge_repeats_pixels_by_a_whole_factor():
    image = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    large = enlarge(image)
    assert large.shape == (112, 112, 3)
    np.testing.assert_array_equal(large[..., 0], np.kron(image, np.ones((4, 4), np.uint8)))
    assert enlarge(flat(3, 224)).shape == (224, 224, 3)


def test_grid_puts_images_in_rows():
    sheet = grid([flat(10 * i) for i in range(5)], columns=3)
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * 112 + 3 * 8, 3 * 112 + 4 * 8, 3)
    for i in range(5):
        top, left = 8 + i // 3 * 120, 8 + i % 3 * 120
        assert (sheet[top : top + 112, left : left + 112] == 10 * i).all()
        sheet[top : top + 112, left : left + 112] = 255
    assert (sheet == 255).all()


def test_grid_writes_captions_within_their_cell():
    plain, text = grid([flat(0)] * 2, 2, ["", ""]), grid([flat(0)] * 2, 2, ["W" * 80, ""])
    changed = np.argwhere((plain != text).any(-1))
    assert len(changed) and changed[:, 0].min() >= 8 + 112
    assert changed[:, 1].min() >= 8 and changed[:, 1].max() < 8 + 112


def test_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one image"):
        grid([])
    with pytest.raises(ValueError, match="got 1 for 2"):
        grid([flat(0)] * 2, captions=["a"])


def test_reconstruction_sheet_has_a_titled_row_for_each_sample():
    sheet = reconstruction_sheet([flat(1), flat(4)], [flat(2), flat(5)], [flat(3), flat(6)])
    body = grid([flat(i) for i in range(1, 7)], 3)
    np.testing.assert_array_equal(sheet[-len(body) :], body)
    head = sheet[: -len(body)]
    for left in (8, 128, 248):
        assert head[:, left : left + 112].min() < 128
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        reconstruction_sheet([flat(1)], [flat(2)], [flat(3)] * 2)


def test_neighbour_sheet_frames_agreement():
    sheet = neighbour_sheet([flat(0)], [[flat(0), flat(0)]], [["cat", "cat", "dog"]])
    row = sheet[-(112 + 22 + 8) :][:112]
    edges = [tuple(map(int, row[0, left])) for left in (8, 128, 248)]
    assert edges == [(0, 0, 0), BLUE, RED]
    assert all((row[56, left + 56] == 0).all() for left in (8, 128, 248))
    bare = neighbour_sheet([flat(0)], [[flat(0), flat(0)]])
    assert not any((bare == colour).all(-1).any() for colour in (BLUE, RED))


def test_neighbour_sheet_refuses_what_does_not_agree():
    with pytest.raises(ValueError, match="equally many neighbours"):
        neighbour_sheet([flat(0)] * 2, [[flat(0)], [flat(0)] * 2])
    with pytest.raises(ValueError, match="3 texts for each of 1"):
        neighbour_sheet([flat(0)], [[flat(0)] * 2], [["a", "b"]])


def test_save_png_comes_back_and_leaves_no_draft(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = save_png(image, tmp_path / "deep" / "a.png")
    with Image.open(file) as read:
        np.testing.assert_array_equal(np.asarray(read), image)
    assert [path.name for path in file.parent.iterdir()] == ["a.png"]


def test_save_describes_pictures(tmp_path):
    save(tmp_path, "views", flat(0), title="Views", caption="c")
    save(tmp_path, "embedding", embedding_map(np.zeros((1, 2))), title="Map", alt="a")
    assert {file.name for file in tmp_path.iterdir()} == {"views.png", "embedding.svg", "pictures.json"}
    assert json.loads((tmp_path / "pictures.json").read_text()) == {
        "views": {"title": "Views", "caption": "c", "alt": "c"},
        "embedding": {"title": "Map", "caption": "", "alt": "a"},
    }


def test_projection_is_pca():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(1).normal(size=(60, 7)) @ np.diag([5, 3, 2, 1, 1, 1, 0.5]) + 4
    pca = PCA(2).fit(x)
    signs = [np.sign(axis[np.abs(axis).argmax()]) for axis in pca.components_]
    np.testing.assert_allclose(project(x), pca.transform(x) * signs, atol=1e-9)
    np.testing.assert_allclose(project(-x), -project(x), atol=1e-9)  # mirrored data, the same axes


def test_projection_of_few_dimensions_or_samples():
    np.testing.assert_allclose(project([[1.0], [3.0]]), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(project([[1.0, 2.0, 3.0]]), [[0, 0]])


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3), [[np.nan, 0.0]]])
def test_projection_refuses(bad):
    with pytest.raises(ValueError, match="features"):
        project(bad)


def marks(svg):
    """Marks inside the frame: (class, shape, x, y)."""
    root = ET.fromstring(svg)
    found = [path for path in root.iter(f"{SVG}path") if "scale" not in path.get("transform")]
    places = [path.get("transform")[10:-1].split() for path in found]
    return [(p.get("class"), p.get("d"), float(x), float(y)) for p, (x, y) in zip(found, places, strict=True)]


def test_map_keeps_proportions_and_classes():
    (a, b, c) = marks(embedding_map([[0, 0], [4, 0], [0, 1]], [0, 1, 0]))
    assert b[2] - a[2] == pytest.approx(4 * (a[3] - c[3]), abs=0.3)  # one scale for both axes, y upwards
    assert a[:2] == c[:2] != b[:2]


def test_map_tells_28_classes_apart_and_names_them():
    svg = embedding_map(np.random.default_rng(0).normal(size=(28, 2)), range(28), [f"class {i}" for i in range(28)])
    assert len({mark[:2] for mark in marks(svg)}) == 28
    texts = [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts == [f"class {i}" for i in range(28)]


def test_map_without_labels_with_gaps_and_too_many_points():
    assert {mark[0] for mark in marks(embedding_map(np.eye(2)))} == {"none"}
    assert len(marks(embedding_map([[0, 0], [np.nan, 1], [1, 1]], [0, 0, -1]))) == 2
    assert "no label" in embedding_map([[0, 0], [1, 1]], [0, -1])
    assert len(marks(embedding_map(np.random.default_rng(0).normal(size=(5000, 2))))) == MOST_POINTS
    assert "No point" in embedding_map(np.zeros((0, 2)))


def test_map_escapes_class_names():
    svg = embedding_map(np.eye(2), [0, 1], ["<script>x</script>", "b"])
    assert "<script" not in svg and ET.fromstring(svg) is not None
    with pytest.raises(ValueError, match="one class for each of 2"):
        embedding_map(np.eye(2), [0])
