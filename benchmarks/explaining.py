"""How well hiding cells finds a known region of a face, and what it costs, beside captum's gradients.

    python benchmarks/explaining.py FOLDER

Needs captum (`pip install --no-deps captum matplotlib` and what they want), which agewatch itself never does. FOLDER
holds portraits. The synthetic ages depend on one rectangle of the chip alone, drawn anew for each face.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from captum.attr import IntegratedGradients, Saliency
from results import table, write_section

from agewatch.api import model_file
from agewatch.errors import ImageError
from agewatch.estimator import explain
from agewatch.estimator.engine import open_engine
from agewatch.estimator.faces import YuNet, look
from agewatch.estimator.images import RGB
from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Floats
from agewatch.settings import Settings

FACES, TIMED = 24, 4
STEPS = 32
Region = tuple[slice, slice]
KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "brightness": lambda grey: grey.mean((1, 2)) / 3,
    "edges": lambda grey: (grey[:, 1:] - grey[:, :-1]).abs().mean((1, 2)) * 4,
}


def chips_of(folder: Path, model: AgeModel) -> list[RGB]:
    """The largest face of each of the first pictures."""
    found: list[RGB] = []
    detector = YuNet()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found += look(file.read_bytes(), detector, model.spec.cut).chips[:1]
        except ImageError:
            continue
        if len(found) == FACES:
            break
    return found


def maps(age: Callable[[torch.Tensor], torch.Tensor], chip: RGB) -> dict[str, Floats]:
    """A map of the chip by each way, for an age that torch can differentiate."""
    picture = torch.from_numpy(chip[None]).float().requires_grad_()
    blurred = torch.from_numpy(cv2.GaussianBlur(chip, (0, 0), len(chip) / 8)[None]).float()
    hidden = torch.from_numpy(explain._hidden(chip)).float()
    with torch.no_grad():
        years = (age(hidden) - age(picture)).numpy().reshape(explain.CELLS, explain.CELLS)
    gradients = {
        "saliency": Saliency(age).attribute(picture, abs=False),
        f"integrated gradients, {STEPS} steps": IntegratedGradients(age).attribute(
            picture, baselines=blurred, n_steps=STEPS, internal_batch_size=8
        ),
    }
    sums = {name: found.detach().numpy()[0].sum(2).astype(np.float32) for name, found in gradients.items()}
    size = (explain.CELLS, explain.CELLS)
    return {"hiding": years} | {
        name: cv2.resize(found, size, interpolation=cv2.INTER_AREA) for name, found in sums.items()
    }


def found_in(years: Floats, region: Region, size: int) -> tuple[bool, float]:
    """Whether the peak lies in the region, half a cell allowed, and which share of the map does."""
    weight = np.abs(cv2.resize(years, (size, size), interpolation=cv2.INTER_NEAREST))
    row, column = (int(place) for place in np.argwhere(weight == weight.max()).mean(0))
    slack = size // explain.CELLS // 2
    hit = all(part.start - slack <= at < part.stop + slack for part, at in zip(region, (row, column), strict=True))
    return hit, float(weight[region].sum() / weight.sum())


def cpu_seconds(do: Callable[[], object]) -> float:
    """CPU time of one core."""
    started = time.process_time()
    do()
    return time.process_time() - started


def main() -> None:
    """Measure and write the section."""
    torch.set_num_threads(1)
    model = AgeModel.load(model_file(None))
    chips, random = chips_of(Path(sys.argv[1]), model), np.random.default_rng(0)
    size, results = model.spec.cut.size, dict[tuple[str, str], list[tuple[bool, float]]]()
    for kind, of_grey in KINDS.items():
        for chip in chips:
            tall, wide = random.integers(size // 6, size // 3, 2)
            top, left = random.integers(0, size - tall), random.integers(0, size - wide)
            region = slice(top, top + tall), slice(left, left + wide)

            def age(pixels: torch.Tensor) -> torch.Tensor:
                return of_grey(pixels[:, region[0], region[1]].mean(3))

            for way, years in maps(age, chip).items():
                results.setdefault((kind, way), []).append(found_in(years, region, size))
    network, bins = model.network(), torch.from_numpy(model.spec.labels.years)
    engines = {name: open_engine(model, cache=Settings().cache, precision=name) for name in ("f32", "bf16")}
    costs = {
        f"hiding, OpenVINO {name}": [
            cpu_seconds(lambda: explain.explain(chip, model, engine)) for chip in chips[:TIMED]
        ]
        for name, engine in engines.items()
    }
    by_gradients = IntegratedGradients(lambda pixels: network(pixels) @ bins)
    pictures = [torch.from_numpy(chip[None]).float().requires_grad_() for chip in chips[:TIMED]]
    costs[f"integrated gradients, {STEPS} steps, torch"] = [
        cpu_seconds(lambda: by_gradients.attribute(picture, n_steps=STEPS, internal_batch_size=8))
        for picture in pictures
    ]
    rows = [
        [kind, way, f"{np.mean([hit for hit, _ in found]):.2f}", f"{np.nanmean([share for _, share in found]):.2f}"]
        for (kind, way), found in results.items()
    ]
    times = [[name, f"{np.median(seconds):.2f}"] for name, seconds in costs.items()]
    write_section(
        "Why an age",
        f"Written by benchmarks/explaining.py over {len(chips)} faces; chips of {size} pixels, {explain.CELLS} x"
        f" {explain.CELLS} cells.\n\n"
        + table(["a synthetic age depends on", "way", "peak in the region", "share of the map in it"], rows)
        + f"\n\n{model.id}, CPU seconds a face on one core:\n\n"
        + table(["way", "seconds"], times),
    )


if __name__ == "__main__":
    main()
