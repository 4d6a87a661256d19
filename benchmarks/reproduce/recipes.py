"""Every recipe on the set of its modality, as small as the sample makes it: does its loss fall, and do features gain?

A job is about three minutes of one core, training and scoring together, one seed. It says that a recipe trains as it
stands; how good a method is takes more (docs/results/README.md, `grid` and `siblings`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.reproduce.grid import CELLS, PLAIN, SETS, small_run
from benchmarks.reproduce.siblings import GROUPS
from mmssl.config.files import describe, recipes
from mmssl.evaluation.telling import verdict

# what all recipes of a modality are given on top of the set's own
BUDGET: dict[str, list[str]] = {
    "image": ["trainer.max_epochs=null", "trainer.max_steps=500"],
    "video": ["trainer.max_steps=null", "trainer.max_epochs=12"],
    "audio": ["trainer.max_steps=null", "trainer.max_epochs=6"],
    "pointcloud": [],
    "graph": ["trainer.max_epochs=300"],
    "tabular": ["data.batch_size=128", "encoder.depth=2", "trainer.max_epochs=12"],
}
# the set that recipes of several streams are decoded from
STREAMS = {"multimodal/croma": "image", "multimodal/hicmae": "video", "multimodal/multimae": "image"}
FEW = ["trainer.max_steps=300"]
FINE = ["tokenizer.patch=4", "trainer.max_steps=300"]
# overrides of one recipe: most shorten what costs more than others, or ask for more hidden or finer patches where the
# paper's share of a 196-patch image is too easy or too coarse on one of 16 patches
OWN: dict[str, list[str]] = {
    **{f"image/{name}": PLAIN for name in ("simsiam", "vicreg", "mocov3")},
    **{f"image/{name}": FINE for name in ("ropim", "a2mim", "localmim", "dmjd", "umd", "lut")},
    **{f"image/{name}": FEW for name in ("attmask", "dino", "ibot", "dinov2", "swav", "spark", "spark_convnext")},
    "image/latent_mim": ["masker.ratio=0.75"],
    "image/capi": ["encoder.drop_path=0.0", "masker.predict=0.3"],
    "image/mfm": ["corruptor.radius=4"],
    # of two blocks
    "image/maskalign": ["objective.align.predictor.last=2", "objective.align.target.last=2"],
    "image/hybrid_distill": ["encoder.drop=[0.3]"],
    "image/data2vec2": [f"objective.{term}.target.layers=[ffn.0,ffn.1]" for term in ("layers", "layers_mean")],
    "image/beitv2": [*FEW, "stages.tokenizer.tokenizer.patch=8", "stages.tokenizer.encoder.depth=2"],
    "multimodal/multimae": FINE,
    "video/videomae_v2": ["masker.masker.ratio=0.75", "data.repeats=1"],
    "video/adamae": ["masker.ratio=0.9", "objective.sampling.weight=1e-3"],
    "video/siammae": ["data.repeats=2", "trainer.max_epochs=40"],
    "audio/hubert": ["trainer.max_epochs=3"],
    "audio/wav2vec2": ["trainer.max_epochs=8"],
    "audio/bird_mae": ["trainer.max_epochs=8"],
    "pointcloud/point_jepa": [
        "objective.latent.predictor.depth=1",
        "optim.lr=3e-4",
        "teacher.momentum.first=0.996",
    ],
    "graph/scgc": ["trainer.max_epochs=50"],
    # short, targets of equal norm, and numbers of mean 0 and deviation 1: else both end in a constant
    "tabular/t_jepa": [
        "data.batch_size=64",
        "encoder.depth=4",
        "objective.latent.predictor.depth=1",
        "objective.latent.normalize._target_=norm/layer",
        "evaluation.pool=max",
        "trainer.max_epochs=1",
    ],
    "tabular/dbot": [
        "data.batch_size=64",
        "tokenizer.standardize=true",
        "objective.distill.predictor.depth=1",
        "trainer.max_epochs=2",
    ],
    "tabular/vime": ["trainer.max_epochs=20"],
    "tabular/scarf_correlated": ["trainer.max_epochs=15"],
}
# timm's networks have their own sizes
CONVOLUTIONAL = ("image/spark", "image/spark_convnext", "image/a2mim_resnet")
SIZELESS = ("encoder.depth", "tokenizer.patch")
# what distils is given a masked autoencoder trained by us, where the paper has CLIP or another that cannot be had here
TAUGHT: dict[str, list[str]] = {
    "image/maskalign": ["guide.network"],
    "image/hybrid_distill": ["objective.relations.target.network", "objective.features.target.network"],
    "image/beitv2": ["stages.tokenizer.objective.features.target.network"],
    "image/vqkd": ["objective.features.target.network"],
    "image/maskdistill": ["objective.features.target.network"],
    "image/dmae": ["objective.features.target.network"],
}


def modality(recipe: str) -> str:
    """Whose set a recipe is trained on."""
    return STREAMS.get(recipe, describe(recipe)["modality"])


def elsewhere() -> dict[str, str]:
    """Recipes that are trained as small for another table, with the job whose result counts here."""
    found = {
        recipe: f"sibling-{group}-{recipe.split('/')[1]}/{SETS[kind][0]}/seed0"
        for group, (kind, _, simpler, others) in GROUPS.items()
        for recipe in (simpler, *others)
    }
    return found | {
        recipe: f"grid-{kind}-{family}/{SETS[kind][0]}/seed0"
        for kind, cells in CELLS.items()
        for family, (recipe, _) in cells.items()
    }


def jobs() -> dict[str, Callable[[Path, Path], dict]]:
    """One of every recipe that is in no other table, by `recipe-<modality>-<name>/<set>/seed0`."""
    others = elsewhere()
    return {_name(recipe): partial(_run, recipe) for recipe in recipes() if recipe not in others}


def _name(recipe: str) -> str:
    return f"recipe-{recipe.replace('/', '-')}/{SETS[modality(recipe)][0]}/seed0"


def _run(recipe: str, data: Path, runs: Path) -> dict:
    kind = modality(recipe)
    said = ["evaluation.protocols.knn=null", *BUDGET[kind], *OWN.get(recipe, [])]
    for key in TAUGHT.get(recipe, []):
        said += [f"{key}._target_=network/run", f"{key}.path={_teacher(data, runs)}"]
    return small_run(recipe, kind, said, 0, data, runs, SIZELESS if recipe in CONVOLUTIONAL else ())


def _teacher(data: Path, runs: Path) -> Path:
    """The run of a masked autoencoder, as small as the students; trained when the first of them asks."""
    folder = runs.parents[2] / "teacher"
    for file in folder.rglob("summary.json"):
        if json.loads(file.read_text())["status"] == "completed":
            return file.parent.resolve()
    small_run("image/mae", "image", BUDGET["image"], 0, data, folder)
    return _teacher(data, runs)


def table(results: Path) -> str:
    """Loss at the first row and the last, the linear probe beside random weights, verdict and time, in Markdown.

    A probe is above where the 95 % interval of the paired difference over the test samples is.
    """
    lines = ["| recipe | set | loss | linear | random weights | above | verdict | CPU s |", "|---" * 8 + "|"]
    others = elsewhere()
    for name in recipes():
        file = results / f"{others.get(name) or _name(name)}.json"
        if file.exists():
            one = json.loads(file.read_text())
            score, loss = one["eval"]["linear"], one["train"]
            low, high = score["ci95"]
            above = {"better": "yes", "worse": "no", "noise": "~"}[verdict(score, "random_init")]
            lines.append(
                f"| `{name}` | {one['set']} | {loss['first_loss']:.3g} to {loss['loss']:.3g} | {score['value']:.3f} "
                f"[{low:.3f}, {high:.3f}] | {score['random_init']:.3f} | {above} | {one['health']['verdict']} "
                f"| {round(one['cpu_s']) if 'cpu_s' in one else ''} |"
            )
    return "\n".join(lines)
