"""The online callback in real (tiny) training runs."""

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmssl.evaluation.features import Features
from mmssl.evaluation.monitors import monitors
from mmssl.evaluation.online import Online
from mmssl.evaluation.protocols import Knn
from mmssl.evaluation.splits import stratified
from mmssl.types import Tokens, View

torch.set_num_threads(1)
N = 48


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)

    def forward(self, view: View) -> Tokens:
        x = self.drop(self.norm(self.linear(view.data))).unsqueeze(1)
        return Tokens(raw=x, pos=x[..., :1], index=torch.zeros(len(x), 1, dtype=torch.int64), x=x)


class Module(lightning.LightningModule):
    """Reconstructs its input from features; dropout draws from the global generator."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__()
        self.kept, self.back, self.rate = Encoder(), nn.Linear(5, 6), rate
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        loss = (self.back(self.kept(batch["x"]).pool()) - batch["x"].data).square().mean()
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def collate(items: list[Any]) -> dict[str, Any]:
    return {"x": View(torch.stack([x for x, _ in items]), "toy"), "label": torch.tensor([y for _, y in items])}


class Data(lightning.LightningDataModule):
    def __init__(self, splits: tuple[str, ...] = ("train", "test"), labels: bool = True) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        y = torch.arange(N) % 3
        x = torch.randn(N, 6, generator=g) + 2 * torch.eye(6)[y]
        self.items = [(x[i], int(y[i]) if labels else -1) for i in range(N)]
        self.splits, self.asked = splits, []

    def train_dataloader(self) -> Any:
        return DataLoader(self.items, batch_size=16, shuffle=True, collate_fn=collate)

    def eval_loader(self, split: str, limit: int) -> Any:
        self.asked.append((split, limit))
        if split not in self.splits:
            return None
        items = self.items[: N // 2] if split == "val" else self.items
        return DataLoader(items[:limit], batch_size=16, collate_fn=collate)


class Keep(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if any(name.startswith("val/") for name in metrics):
            self.rows.append((step, metrics))


def fit(tmp: Path, callbacks: list[Any], data: Data | None = None, **given: Any) -> tuple[lightning.Trainer, Module]:
    rate, epochs, ckpt = given.pop("rate", 0.05), given.pop("epochs", 2), given.pop("ckpt", None)
    torch.manual_seed(0)
    module = Module(rate)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=tmp, callbacks=callbacks, **{**quiet, **given}
    )
    trainer.fit(module, datamodule=data or Data(), ckpt_path=ckpt, **({"weights_only": True} if ckpt else {}))
    return trainer, module


def vectors(module: Module, items: list[Any]) -> Features:
    with torch.no_grad():
        x = module.eval().kept(View(torch.stack([x for x, _ in items]), "toy")).pool()
    return Features(x, torch.tensor([y for _, y in items]))


@pytest.mark.filterwarnings("ignore")
class TestOnline:
    def test_training_is_the_same_with_and_without(self, tmp_path: Path) -> None:
        _, without = fit(tmp_path, [])
        _, observed = fit(tmp_path, [Online(every_steps=1)])
        assert observed.losses == without.losses and len(without.losses) == 6
        for a, b in zip(observed.state_dict().values(), without.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    def test_without_val_it_scores_a_part_of_train_and_never_reads_test(self, tmp_path: Path) -> None:
        online, data = Online(limit=40, protocols={"knn": Knn(k=3)}), Data()
        _, module = fit(tmp_path, [online], data)
        assert {split for split, _ in data.asked} == {"train", "val"} and {limit for _, limit in data.asked} == {40}
        seen = vectors(module, data.items[:40])
        held = stratified(seen.y, 0.2)
        assert online.latest["knn"] == Knn(k=3)(seen.where(~held), seen.where(held)).value
        for name, value in monitors(seen.x).items():
            assert online.latest[name] == pytest.approx(value, rel=1e-4)
        assert [row["step"] for row in online.history] == [0, 3, 6] and online.history[-1]["n"] == 40

    def test_with_val_it_fits_on_train_and_scores_val(self, tmp_path: Path) -> None:
        online, data = Online(protocols={"knn": Knn(k=3)}), Data(("train", "val", "test"))
        _, module = fit(tmp_path, [online], data)
        train, val = vectors(module, data.items), vectors(module, data.items[: N // 2])
        assert online.latest["knn"] == Knn(k=3)(train, val).value
        assert online.latest["rankme"] == pytest.approx(monitors(val.x)["rankme"], rel=1e-4)
        assert "test" not in {split for split, _ in data.asked}

    def test_loggers_and_checkpoints_get_the_values(self, tmp_path: Path) -> None:
        keep, online = Keep(), Online(at_start=False)
        best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val/linear", mode="max")
        trainer, _ = fit(
            tmp_path, [online, best], logger=[keep, CSVLogger(tmp_path)], enable_checkpointing=True, log_every_n_steps=1
        )
        names = {"val/knn", "val/linear", "val/rankme", "val/feature_std", "val/uniformity", "val/alpha_req"}
        assert [step for step, _ in keep.rows] == [3, 6] and all(set(row) == names for _, row in keep.rows)
        assert keep.rows[-1][1] == {f"val/{name}": value for name, value in online.latest.items()}
        assert float(best.best_model_score) == pytest.approx(max(row["val/linear"] for _, row in keep.rows))
        assert "val/knn" in next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]
        assert names <= set(trainer.callback_metrics)

    def test_without_labels_there_are_monitors_alone(self, tmp_path: Path) -> None:
        online = Online()
        fit(tmp_path, [online], Data(labels=False))
        assert set(online.latest) == {"rankme", "feature_std", "uniformity", "alpha_req"}
        assert online.latest["rankme"] > 1

    def test_a_diverged_network_is_reported_and_does_not_crash(self, tmp_path: Path) -> None:
        online = Online()
        fit(tmp_path, [online], rate=1e30)
        assert set(online.latest) == {"rankme", "feature_std", "uniformity", "alpha_req"}
        assert all(math.isnan(value) for value in online.latest.values())

    @pytest.mark.parametrize(
        ("given", "steps"),
        [
            ({"every_epochs": None, "every_steps": 2}, [0, 2, 4, 6]),
            ({"every_epochs": None, "every_steps": 4}, [0, 4, 6]),  # and the final network
            ({"every_epochs": 2, "at_start": False}, [6]),
        ],
    )
    def test_when(self, tmp_path: Path, given: dict[str, Any], steps: list[int]) -> None:
        online = Online(protocols={}, **given)
        fit(tmp_path, [online])
        assert [row["step"] for row in online.history] == steps

    def test_accumulated_batches_are_one_step(self, tmp_path: Path) -> None:
        online = Online(protocols={}, every_steps=1)
        fit(tmp_path, [online], accumulate_grad_batches=3)
        assert [row["step"] for row in online.history] == [0, 1, 2]

    def test_the_history_survives_a_resume_from_plain_containers(self, tmp_path: Path) -> None:
        first = Online(protocols={"knn": Knn(k=3)})
        trainer, _ = fit(tmp_path, [first])
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        again = Online(protocols={"knn": Knn(k=3)})
        fit(tmp_path, [again], epochs=3, ckpt=tmp_path / "last.ckpt")
        assert again.history[:3] == first.history
        assert [row["step"] for row in again.history] == [0, 3, 6, 9]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="every_steps has to be 1 or more, or null"):
        Online(every_steps=0)
    assert Online().latest == {}
