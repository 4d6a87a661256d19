import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from mmssl.data.source import BadSample
from mmssl.modalities.video.clips import Clip, convert, natural, open_arrays, open_folder
from tests.modalities.video.made import pixels


def folder(path, frames, names=None):
    path.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / (names[i] if names else f"f{i + 1}.png"))
    return path


def test_a_folder_in_natural_order(tmp_path):
    """f10 comes behind f9; hidden files and others are left alone."""
    frames = pixels(12)
    path = folder(tmp_path / "v", frames)
    (path / "notes.txt").write_text("x")
    (path / ".f0.png").write_bytes(b"x")
    clip = open_folder(path)
    assert clip.count == 12 and clip.fps == 30
    assert torch.equal(clip.frames([11, 0, 9]), torch.from_numpy(frames[[11, 0, 9]]).permute(0, 3, 1, 2))
    assert sorted(["img10.jpg", "img9.jpg", "img1_20.jpg", "img1_3.jpg"], key=natural) == [
        "img1_3.jpg", "img1_20.jpg", "img9.jpg", "img10.jpg",
    ]  # fmt: skip
    small = open_folder(path, 16).whole()
    assert torch.equal(small, F.resize(clip.whole(), [16], antialias=True))


def test_a_folder_with_a_fault(tmp_path):
    path = folder(tmp_path / "v", pixels(4))
    (path / "f2.png").write_bytes(b"no picture")
    clip = open_folder(path)
    assert len(clip.frames([0, 2])) == 2
    with pytest.raises(BadSample, match=r"the frame f2\.png cannot be read"):
        clip.frames([0, 1])
    Image.fromarray(pixels(1, 30, 48)[0]).save(path / "f2.png")
    with pytest.raises(BadSample, match=r"the frame f2\.png is 30x48, others of the folder are 32x48"):
        clip.whole()
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no frames"):
        open_folder(tmp_path / "none")


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize("name", ["frames", "anything"])
def test_arrays(tmp_path, name):
    frames = pixels(5)
    clip = open_arrays(npz(**{name: frames, "fps": np.array(12.5), "label": np.array([1])}))
    wanted = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert clip.count == 5 and clip.fps == 12.5 and torch.equal(clip.whole(), wanted)
    grey = open_arrays(npz(**{name: frames[..., 0]}))
    assert grey.fps == 30 and torch.equal(grey.frames([4, 1]), wanted[[4, 1], :1])
    path = tmp_path / "a.npz"
    path.write_bytes(npz(**{name: frames}))
    assert torch.equal(open_arrays(path, 16).whole(), F.resize(wanted, [16], antialias=True))


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"PK\x03\x04 and then nothing", "not a readable .npz"),
        (npz(), "found nothing"),
        (npz(a=np.zeros(3)), r"needs an array `frames`.*found a \(3,\)"),
        (npz(a=np.zeros((2, 2, 2), np.uint8), b=np.zeros((2, 2, 2), np.uint8)), "needs an array `frames`"),
        (npz(frames=np.zeros((2, 4, 4, 3), np.float32)), r"`frames` is float32 \(2, 4, 4, 3\)"),
        (npz(frames=np.zeros((0, 4, 4, 3), np.uint8)), "at least one frame"),
        (npz(frames=np.zeros((2, 2, 4, 4, 3), np.uint8)), r"\(2, 2, 4, 4, 3\)"),
        (npz(frames=np.array([[[{}]]], dtype=object)), "allow_pickle|Object arrays"),
    ],
)
def test_arrays_that_are_no_clip(blob, message):
    with pytest.raises(ValueError, match=message):
        open_arrays(blob)


def test_a_clip_over_an_array_hands_out_copies():
    held = np.ascontiguousarray(pixels(6).transpose(0, 3, 1, 2))
    clip = Clip.over(held, {"fps": 10.0})
    before = held.copy()
    for places in ([0, 1, 2], [5, 2], [3]):
        clip.frames(places).zero_()
    assert np.array_equal(held, before) and clip.fps == 10 and clip.note() == {"fps": 10.0}
    assert clip.size() == held.size == clip.whole().numel()
    assert torch.equal(pickle.loads(pickle.dumps(clip)).whole(), clip.whole())


def test_channels():
    frames = torch.from_numpy(pixels(3)).permute(0, 3, 1, 2)
    grey = convert(frames, 1)
    for made, frame in zip(grey, frames, strict=True):
        reference = np.array(Image.fromarray(frame.permute(1, 2, 0).numpy()).convert("L"))
        assert (made[0].int() - torch.from_numpy(reference).int()).abs().max() <= 1
    assert torch.equal(convert(grey, 3), grey.repeat(1, 3, 1, 1)) and convert(frames, 3) is frames
    alpha = torch.cat([frames, frames[:, :1]], 1)
    assert torch.equal(convert(alpha, 3), frames) and torch.equal(convert(alpha, 1), grey)
    clip = Clip.over(frames.numpy(), {}).to_channels(1)
    assert torch.equal(clip.frames([2, 0]), grey[[2, 0]])
    with pytest.raises(ValueError, match=r"data\.channels=3, but a video has 7.*set data\.channels=7"):
        convert(torch.zeros(2, 7, 4, 4, dtype=torch.uint8), 3)
