"""Whether the engines agree: ages of the same faces by OpenVINO in f32 and bf16, and by torch."""

import os
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from bench import resolve_model
from results import table, write_section

from agewatch.estimator.engine import Engine, TorchEngine, has_bf16, open_engine
from agewatch.estimator.faces import look
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Floats
from agewatch.sources import door

FACES = 2_000
BATCH = 32


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    model = AgeModel.load(resolve_model())
    root = Path(os.environ["AGEWATCH_DATA"]) / "archive_faces"
    chips = np.concatenate(
        [
            look(door.at(root).read(file)[0], None, model.spec.cut).chips
            for file in islice(door.find(door.at(root)).files, FACES)
        ]
    )
    with tempfile.TemporaryDirectory() as cache:
        folder = Path(cache)
        f32 = _ages(model, open_engine(model, cache=folder, engine="openvino", precision="f32"), chips)
        others = {"torch, f32": _ages(model, TorchEngine(model), chips)}
        if has_bf16():
            bf16 = open_engine(model, cache=folder, engine="openvino", precision="bf16")
            others["OpenVINO, bf16"] = _ages(model, bf16, chips)
    rows = [
        [name, f"{(ages - f32).mean():+.5f}", f"{abs(ages - f32).mean():.5f}", f"{abs(ages - f32).max():.5f}"]
        for name, ages in others.items()
    ]
    header = ["against OpenVINO, f32", "mean difference", "mean absolute", "largest"]
    write_section(
        "Parity of the engines",
        f"Written by `make bench`: {model.id}, {len(chips):,} faces of archive_faces, years.\n\n{table(header, rows)}",
    )


def _ages(model: AgeModel, engine: Engine, chips: RGB) -> Floats:
    batches = [chips[start : start + BATCH] for start in range(0, len(chips), BATCH)]
    return np.concatenate([model.ages(engine(batch)) for batch in batches])


if __name__ == "__main__":
    main()
