import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mmssl.data.source import BadSample
from mmssl.modalities.video.adapter import Video
from mmssl.modalities.video.clips import Clip
from tests.modalities.video.made import decoded, pixels, video

ADAPTER = Video()


def clip(count=9, height=20, width=24, channels=3, seed=0, fps=25.0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return Clip.over(frames, {"fps": fps})


def broken():
    def fetch(wanted):
        raise BadSample("broken")

    return Clip(5, 30.0, fetch)


def test_files_folders_and_arrays_open_alike(tmp_path):
    path = video(tmp_path / "a.mp4")
    np.savez(tmp_path / "a.npz", frames=pixels(7))
    assert torch.equal(ADAPTER.open(path).whole(), decoded(path))
    assert torch.equal(ADAPTER.decode(path.read_bytes(), 1).whole(), ADAPTER.open(path).to_channels(1).whole())
    for sample in (ADAPTER.open(tmp_path / "a.npz"), ADAPTER.decode((tmp_path / "a.npz").read_bytes())):
        assert sample.count == 7
    assert Video(side=16).open(path).frames([0]).shape == (1, 3, 16, 24)


def test_collate():
    frames = [clip(4, seed=i).whole() for i in range(3)]
    assert torch.equal(ADAPTER.collate(frames), torch.stack(frames))
    with pytest.raises(ValueError, match="have to begin with view/clip"):
        ADAPTER.collate([clip()])
    with pytest.raises(ValueError, match=r"videos of 1 and 3 channels; set data\.channels=3"):
        ADAPTER.collate([frames[0], frames[0][:, :1]])
    with pytest.raises(ValueError, match=r"4 frames of 10x24, 4 frames of 20x24.*data\.views"):
        ADAPTER.collate([frames[0], frames[0][:, :, :10]])


def test_facts_are_those_of_four_frames_of_each():
    samples = [clip(10, 8, 12, fps=25.0), clip(3, 16, 6, seed=1, fps=10.0)]
    facts = ADAPTER.facts([*samples, broken()])
    taken = [samples[0].whole()[[0, 3, 6, 9]], samples[1].whole()[[0, 1, 1, 2]]]
    values = torch.cat([frames.transpose(0, 1).flatten(1) for frames in taken], 1).double() / 255
    assert facts["mean"] == pytest.approx(values.mean(1).tolist())
    assert facts["std"] == pytest.approx(values.std(1, correction=0).tolist())
    wanted = {"channels": 3, "height": [8, 16], "width": [6, 12], "frames": [3, 10], "fps": [10.0, 25.0], "counted": 2}
    assert {key: facts[key] for key in wanted} == wanted
    with pytest.raises(ValueError, match=r"differ in their number of channels \(1 and 3\); set data\.channels=3"):
        ADAPTER.facts([clip(), clip(channels=1)])
    with pytest.raises(ValueError, match="no readable video"):
        ADAPTER.facts([broken()])


def test_the_baseline_is_what_its_name_says():
    sample = clip(31, 40, 48)
    vector = ADAPTER.baseline(sample)
    frames = sample.whole()[[round(i * 30 / 15) for i in range(16)]]
    weight = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = F.resize((frames.float() * weight).sum(1) / 255, [16, 16], antialias=True).flatten(1)
    parts = [grey.mean(0), grey.std(0), (grey[1:] - grey[:-1]).mean(0), (grey[1:] - grey[:-1]).std(0)]
    torch.testing.assert_close(vector, torch.cat(parts), atol=0.005, rtol=0)  # ours rounds grey to a byte
    assert vector.shape == (1024,) and vector.dtype == torch.float32
    still = ADAPTER.baseline(Clip.over(np.repeat(sample.whole()[:1].numpy(), 3, 0), {}))
    assert still[256:512].abs().max() < 1e-6 and still[512:].abs().max() < 1e-6
    assert ADAPTER.baseline(clip(1, channels=2)).isfinite().all()


@pytest.mark.parametrize(
    ("count", "width", "channels", "places"),
    [(3, 10, 3, [0, 1, 2]), (22, 10, 3, [0, 3, 6, 9, 12, 15, 18, 21]), (8, 25, 1, [0, 4, 7]), (2, 10, 5, [0, 1])],
)
def test_a_picture_is_a_strip_of_frames(count, width, channels, places):
    sample = clip(count, 10, width, channels)
    strip = ADAPTER.picture(sample)
    frames = sample.whole()[places].permute(0, 2, 3, 1).numpy()
    frames = frames[..., :3] if channels >= 3 else frames[..., :1].repeat(3, -1)
    assert strip.dtype == np.uint8 and np.array_equal(strip, np.concatenate(list(frames), 1))
    assert np.array_equal(ADAPTER.picture(sample.whole()), strip)


def test_large_frames_make_no_large_picture():
    assert ADAPTER.picture(clip(2, 300, 400)).shape == (112, 2 * 149, 3)
