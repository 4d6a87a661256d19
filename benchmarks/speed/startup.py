"""Start-up: imports, the verbs that compute nothing, and the time from a command to the end of its first step."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GOAL = 1.3
WHAT = "from the command to the end of the first step, against a bare Lightning script"
SAME = "the shipped images, a ViT of the same blocks and sizes, one process; no probe of the untrained network"
PROBED = "... with the probes and monitors of the untrained network in front of it (the default)"
LIMITS = {"import mmssl": 0.3, "mmssl list recipes": 1.0, "mmssl --help": 1.0}

# A masked autoencoder as one file: Lightning, timm's blocks, the images that mmssl ships, read and cropped.
BARE = """
import sys, lightning, numpy as np, torch
from timm.models.vision_transformer import Block
from torchvision.transforms import v2

class Images(torch.utils.data.Dataset):
    def __init__(self, path):
        self.images = torch.from_numpy(np.load(path)["train_images"]).unsqueeze(1)
        self.crop = v2.Compose([v2.RandomResizedCrop(32, (0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    def __len__(self):
        return len(self.images)
    def __getitem__(self, i):
        return self.crop(self.images[i])

class MAE(lightning.LightningModule):
    def __init__(self, n=64, width=128, inner=64):
        super().__init__()
        self.embed, self.pos = torch.nn.Linear(16, width), torch.nn.Parameter(torch.randn(n, width) * 0.02)
        self.encoder = torch.nn.Sequential(*(Block(width, 4, qkv_bias=True) for _ in range(4)))
        self.inner, self.token = torch.nn.Linear(width, inner), torch.nn.Parameter(torch.zeros(1, 1, inner))
        self.dec_pos = torch.nn.Parameter(torch.randn(n, inner) * 0.02)
        self.decoder, self.head = Block(inner, 4, qkv_bias=True), torch.nn.Linear(inner, 16)
    def training_step(self, images):
        b = len(images)
        x = (images.float() / 127.5 - 1).reshape(b, 8, 4, 8, 4).permute(0, 1, 3, 2, 4).reshape(b, 64, 16)
        order = torch.rand(b, 64).argsort(1)
        restore, kept = order.argsort(1), order[:, :16]
        pick = lambda x, index: x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        z = self.inner(self.encoder(pick(self.embed(x) + self.pos, kept)))
        z = torch.cat([z, self.token.expand(b, 48, -1)], 1)
        made = self.head(self.decoder(pick(z, restore) + self.dec_pos))
        return ((made - x) ** 2).mean(-1).gather(1, order[:, 16:]).mean()
    def on_train_batch_end(self, *_):
        open(sys.argv[2], "w").write("done")
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

loader = torch.utils.data.DataLoader(Images(sys.argv[1]), batch_size=64, shuffle=True)
trainer = lightning.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                            enable_model_summary=False, accelerator="auto", devices=1)
trainer.fit(MAE(), loader)
"""


def until(command: list[str], there: Any) -> float:
    """Seconds from starting a process until something is there; the process is then ended."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not there():
            if process.poll() is not None and not there():
                raise RuntimeError(f"{' '.join(command)[:200]} ended without a step, status {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - begun
    finally:
        process.kill()
        process.wait()


def seconds(command: list[str]) -> float:
    """Of a process that ends by itself."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def ours(folder: Path, probed: bool) -> float:
    """mmssl's first step is done when metrics.csv has its row."""
    root, words = folder / f"runs-{probed}", [f"evaluation.online={str(probed).lower()}"]

    def stepped() -> bool:
        return any("\n1," in file.read_text() for file in root.glob("*/*/*/metrics.csv"))

    command = [sys.executable, "-m", "mmssl.cli", "pretrain", "image/mae", "data=sample", f"run.root={root}", *words]
    return until(command, stepped)


def bare(folder: Path, data: Path) -> float:
    """The script's first step is done when it says so."""
    (folder / "bare.py").write_text(BARE)
    return until([sys.executable, str(folder / "bare.py"), str(data), str(folder / "done")], (folder / "done").exists)


def images() -> Path:
    """The file of images inside the package."""
    import mmssl

    return next((Path(mmssl.__file__).parent / "modalities" / "image" / "sample").glob("*.np[zy]"))


def measure(pairs: int) -> dict[str, Any]:
    """Everything, in processes that alternate."""
    base = min(seconds([sys.executable, "-c", ""]) for _ in range(pairs))
    commands = {
        "import mmssl": [sys.executable, "-c", "import mmssl"],
        "mmssl list recipes": [sys.executable, "-m", "mmssl.cli", "list", "recipes"],
        "mmssl --help": [sys.executable, "-m", "mmssl.cli", "--help"],
    }
    found = {name: statistics.median(seconds(command) for _ in range(pairs)) for name, command in commands.items()}
    times: list[tuple[float, float, float]] = []
    for _ in range(1 + pairs):  # the first pair warms the disk's cache
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            times.append((ours(place, False), bare(place, images()), ours(place, True)))
    a, b, c = (1000 * statistics.median(column) for column in zip(*times[1:], strict=True))
    rows = [(name, f"{LIMITS[name]} s", "", f"{value:.2f} s", value <= LIMITS[name]) for name, value in found.items()]
    rows.append((WHAT, str(GOAL), "", f"{a / b:.3f} ({a:.0f} / {b:.0f} ms)", a / b <= GOAL))
    rows.append((PROBED, "no goal", "", f"{c / b:.3f} ({c:.0f} / {b:.0f} ms)", True))
    return {
        "pairs": pairs, "ours_ms": round(a), "reference_ms": round(b), "ratio": round(a / b, 4),
        "seconds": {"python": round(base, 3)} | {name: round(value, 3) for name, value in found.items()},
        "all_ms": [[round(1000 * x) for x in pair] for pair in times], "rows": rows,
        "environment": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS",)},
    }  # fmt: skip
