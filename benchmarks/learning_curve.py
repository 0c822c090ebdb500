"""What more labelled portraits would bring: error on held-out portraits by the number that training sees.

Each point is a training of its own from the same start: one network, half the starter's epochs, at its smaller side.
Not part of `make bench`, as it takes half an hour: AGEWATCH_DATA=... python benchmarks/learning_curve.py
"""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from results import table, write_section
from safetensors.torch import load_file

from agewatch.estimator.network import AgeNetwork
from agewatch.estimator.spec import Cut, Labels, Member, Preprocessing, Spec
from agewatch.labelled.dataset import Faces, prepare
from agewatch.labelled.metrics import measure
from agewatch.labelled.sources import read_sources
from agewatch.training import finetune
from agewatch.training.recipe import TrainConfig

SOURCE, OTHERS = "archive_portraits", ("facial_age", "archive_faces")
SHARES = (0.0, 0.25, 0.5, 1.0)
RECIPE = Path(__file__).parents[1] / "model_store" / "starter.toml"
HELD_OUT = ("calibration", "test")


def main() -> None:
    """Train, print, and write the section of RESULTS.md."""
    data = Path(os.environ["AGEWATCH_DATA"])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        _faces(data, Path(folder))  # extracted once, for all points
        jobs = [processes.submit(_point, data, Path(folder), share) for share in reversed(SHARES)]
        rows = [job.result() for job in reversed(jobs)]
    header = [f"{SOURCE} learnt from", "best epoch", f"{SOURCE}: MAE", "95 % CI", "bias", "other sources: MAE"]
    write_section(
        "What more portraits would bring",
        f"Written by benchmarks/learning_curve.py: one network, {_recipe().epochs} epochs at {_recipe().image_size}"
        f" pixels, from the same weights; faces of the splits {' and '.join(HELD_OUT)}, which training does not see."
        f" Everything else is as in {RECIPE.name}.\n\n{table(header, rows)}",
    )


def _recipe() -> TrainConfig:
    starter = TrainConfig.from_toml(RECIPE)
    return replace(starter, epochs=starter.epochs // 2, image_size=starter.small_size or starter.image_size)


def _spec(config: TrainConfig) -> Spec:
    member = Member(config.backbone, config.image_size, config.kwargs)
    return Spec("curve", "0", (member,), Preprocessing(config.mean, config.std), Labels())


def _faces(data: Path, cache: Path) -> Faces:
    config = _recipe()
    labelled = read_sources([data / name for name in (*OTHERS, SOURCE)])
    scale = _spec(config).preprocessing.chip_scale
    return prepare(labelled, Cut(config.image_size, scale), workers=2, cache=cache)


def _point(data: Path, cache: Path, share: float) -> list[str]:
    """Train on a share of the portraits, the smaller one within the larger; one row of the table."""
    torch.set_num_threads(1)
    config, faces = _recipe(), _faces(data, cache)
    portraits = np.flatnonzero((faces.table["split"] == "train") & (faces.table["source"] == SOURCE))
    kept = round(share * len(portraits))
    faces.table.loc[np.random.default_rng(0).permutation(portraits)[kept:], "split"] = None
    torch.manual_seed(config.seed)
    network = AgeNetwork(_spec(config))
    [weights] = (data / "weights").glob("*.safetensors")
    network.load_state_dict({f"members.0.{name}": value for name, value in load_file(weights).items()}, strict=False)
    with tempfile.TemporaryDirectory() as run:
        finetune.fit(
            network, faces, config, seed=config.seed, run=Path(run),
            log=lambda line: print(f"{kept} portraits: {line}", flush=True),
        )  # fmt: skip
        best = np.argmin(np.loadtxt(Path(run) / "curve.csv", delimiter=",", skiprows=1, usecols=3)) + 1
    rows = np.flatnonzero(faces.table["split"].isin(HELD_OUT))
    with torch.inference_mode():
        batches = np.array_split(rows, len(rows) // 64 + 1)
        found = np.concatenate([(network(torch.from_numpy(faces.chips[b])) @ network.years).numpy() for b in batches])
    inside = faces.table["source"].to_numpy()[rows] == SOURCE
    ours = measure(SOURCE, found[inside], faces.ages(rows[inside]))
    others = measure("others", found[~inside], faces.ages(rows[~inside]))
    return [
        f"{kept:,}", str(best), f"{ours.mae:.2f}", f"{ours.mae_low:.2f} to {ours.mae_high:.2f}", f"{ours.bias:+.2f}",
        f"{others.mae:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
