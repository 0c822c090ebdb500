"""Labelled faces -> candidates on one shared evaluation -> the model to package, in the order it runs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from agewatch import evaluate, finetune
from agewatch.archive import FileRef
from agewatch.candidates import FOLDS, cnn_model, embeddings, ensemble_model, linear_model, ridge, svr
from agewatch.dataset import SPLITS, Faces, known_splits, prepare
from agewatch.engine import Precision, cpu_ms_a_face, has_bf16, open_engine
from agewatch.errors import LabelError, ModelError, UsageError
from agewatch.evaluate import Metrics
from agewatch.labels import read_sources
from agewatch.model import AgeModel, Calibration, Floats, Labels, Member, Preprocessing, Spec
from agewatch.network import AgeNetwork
from agewatch.predictions import SCHEMA
from agewatch.provenance import claim, data_hash, git_commit, library_versions
from agewatch.recipe import TrainConfig
from agewatch.rows import Job, Mode, Scorer, hash_key

Log = Callable[[str], None]


CANDIDATES = ("ridge on frozen embeddings", "linear SVR on frozen embeddings", "CNN", "CNN, mirrored", "ensemble")
"""What is compared, and can be served, beside the median age."""
ALL = "all"
"""Name of the comparison table over all sources."""


@dataclass(frozen=True)
class Trained:
    """What a training run leaves: its folder, the folder of the model to package, and the comparison tables."""

    run: Path
    model_folder: Path
    chosen: str
    tables: dict[str, list[Metrics]]


@dataclass(frozen=True)
class _Candidate:
    name: str
    model: AgeModel
    validation_mae: float


def train(
    sources: Sequence[Path],
    *,
    run: Path,
    config: TrainConfig,
    cache: Path,
    start: Path | None = None,
    workers: int = 2,
    log: Log = print,
) -> Trained:
    """Train all candidates on labelled pictures and leave everything about them in the folder `run`.

    `start` is a safetensors file of the recipe's backbone or an agewatch model file; without it the networks start
    from timm's weights where the recipe says `pretrained`, else from chance. `cache` keeps what was extracted from the
    pictures. A run that was interrupted continues after its last whole epoch when it is called again with the same
    arguments. Raises UsageError, LabelError or ModelError.
    """
    if config.serve not in (None, *CANDIDATES):
        raise UsageError(f"There is no candidate {config.serve!r} to serve; there are {', '.join(CANDIDATES)}.")
    spec, states = _starting_point(config, start)
    _make(run)
    labelled = read_sources(sources)
    if any(item.source.name == ALL for item in labelled):
        raise UsageError(f"A source named {ALL!r} would be mixed up with the whole: rename it.")
    log(f"Reading {len(labelled)} labelled pictures ...")
    faces = prepare(
        labelled, size=spec.image_size, chip_scale=spec.preprocessing.chip_scale, workers=workers, cache=cache,
        earlier=_earlier_splits(start), progress=lambda done, total: log(f"  {done} of {total}"),
    )  # fmt: skip
    _require_enough(faces, config)
    spec = replace(spec, data_hash=data_hash(faces.table), versions=library_versions(), git_commit=git_commit())
    claim(run, config, spec, start)
    faces.table.to_parquet(run / "faces.parquet")
    _log_faces(faces, log)

    candidates = _candidates(spec, states, faces, config, run, log)
    best = min(candidates, key=lambda candidate: candidate.validation_mae)
    chosen = next((candidate for candidate in candidates if candidate.name == config.serve), best)
    log(f"Served: {chosen.name} (validation MAE {chosen.validation_mae:.2f} years)")
    model = _calibrated(chosen.model, faces, run)
    tables = _comparison(candidates, faces, run)
    metrics = _metrics(model, faces, run) | {
        "held_out": {name: evaluate.as_records(table) for name, table in tables.items()},
        "served": chosen.name,
        "training": _training(config, start, faces, run),
    }
    model = AgeModel(replace(model.spec, metrics=metrics), model.weights)
    folder = _save(model, faces, {item.source.name: item.source for item in labelled}, start, run)
    _write_tables(run, tables)
    return Trained(run, folder, chosen.name, tables)


def _starting_point(config: TrainConfig, start: Path | None) -> tuple[Spec, list[dict[str, torch.Tensor]]]:
    """The spec of one network, and the weights that each network of the ensemble starts from."""
    if start is not None and start.suffix != ".safetensors":
        model = AgeModel.load(start)
        first = model.spec.members[0]
        alone = Member(first.backbone, first.image_size, first.kwargs)
        whole = model.network().state_dict()
        states = [_alone(whole, index) for index in range(len(model.spec.members))]
        return replace(model.spec, members=(alone,), metrics={}, calibration=Calibration()), states
    spec = Spec(
        name="agewatch",
        version="0",
        members=(Member(config.backbone, config.image_size, config.kwargs),),
        preprocessing=Preprocessing(config.mean, config.std),
        labels=Labels(),
    )
    try:
        AgeNetwork(spec)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"The recipe's network can't be built: {error}.") from error
    if start is None:
        return spec, [_downloaded(config) if config.pretrained else {}] * config.members
    try:
        weights = load_file(start)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights {start} can't be read: {error}.") from error
    return spec, [{f"members.0.{name}": tensor for name, tensor in weights.items()}] * config.members


def _downloaded(config: TrainConfig) -> dict[str, torch.Tensor]:
    try:
        network = timm.create_model(config.backbone, pretrained=True, num_classes=0, **config.kwargs)
    except Exception as error:  # of the hub's client, which raises its own, requests' and OS errors
        reason = str(error).splitlines()[0]
        raise ModelError(f"timm can't get the weights of {config.backbone} here: {reason}") from error
    return {f"members.0.{name}": tensor for name, tensor in network.state_dict().items()}


def _alone(state: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    prefix = f"members.{index}."
    return {name.replace(prefix, "members.0."): t for name, t in state.items() if name.startswith(prefix)}


def _earlier_splits(start: Path | None) -> dict[int, str]:
    """The splits of the pictures that the model to start from knows, by `hash_key`."""
    if start is None or start.suffix == ".safetensors":
        return {}
    if not (splits := known_splits(start)):
        raise UsageError(f"{start} does not say which pictures it learnt from, so none could be held out fairly.")
    return splits


def _started(spec: Spec, state: dict[str, torch.Tensor], seed: int) -> AgeNetwork:
    """A network with the weights it starts from: all that there are, only a new head may be missing."""
    torch.manual_seed(seed)
    network = AgeNetwork(spec)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"The weights to start from do not fit the network: {error}.") from error
    member: Any = network.members[0]
    head = {id(parameter) for parameter in member.get_classifier().parameters()}
    new = {name for name, parameter in network.named_parameters() if id(parameter) in head}
    missing = [name for name in missing if name not in new and not name.endswith("num_batches_tracked")]
    if state and (missing or unexpected):
        raise ModelError(f"The weights to start from do not fit the network: {[*missing, *unexpected][:3]}.")
    return network


def _candidates(
    spec: Spec, states: list[dict[str, torch.Tensor]], faces: Faces, config: TrainConfig, run: Path, log: Log
) -> list[_Candidate]:
    """Train and build every candidate but the median, the frozen ones before training changes the network."""

    def candidate(name: str, model: AgeModel) -> _Candidate:
        rows = faces.rows("validation")
        return _Candidate(name, model, float(np.abs(_ages(model, faces, "validation", run) - faces.ages(rows)).mean()))

    networks = [_started(spec, state, config.seed + index) for index, state in enumerate(states)]
    log("Ridge and SVR on frozen embeddings ...")
    seen = {split: embeddings(networks[0], faces, split) for split in ("train", "validation")}
    ages = {split: faces.ages(faces.rows(split)) for split in seen}
    found = [
        candidate(f"{name} on frozen embeddings", linear_model(spec, networks[0], regression(seen, ages)))
        for name, regression in (("ridge", ridge), ("linear SVR", svr))
    ]
    for index, network in enumerate(networks):
        log(f"CNN {index + 1} of {len(networks)} ...")
        folder = run / f"member-{index}"
        folder.mkdir(exist_ok=True)
        finetune.fit(network, faces, config, seed=config.seed + index, run=folder, log=log)
    log("Ensemble ...")
    found += [
        candidate("CNN", cnn_model(spec, networks[0])),
        candidate("CNN, mirrored", cnn_model(spec, networks[0], mirrored=True)),
    ]
    model, mae = ensemble_model(spec, networks, faces, lambda model, split: _ages(model, faces, split, run))
    shares = (f"{part.weight:.2f}{f' ({part.svr.share:.0%} SVR)' if part.svr else ''}" for part in model.spec.members)
    log(f"Its weights: {', '.join(shares)}; validation MAE {mae:.2f}")
    return [*found, _Candidate("ensemble", model, mae)]


def _distributions(model: AgeModel, faces: Faces, split: str, run: Path, precision: Precision = "f32") -> Floats:
    engine = open_engine(model, cache=run / "cache", engine="openvino", precision=precision)
    rows = faces.rows(split)
    return np.concatenate([engine(faces.chips[rows[start : start + 64]]) for start in range(0, len(rows), 64)])


def _ages(model: AgeModel, faces: Faces, split: str, run: Path) -> Floats:
    return model.estimate(_distributions(model, faces, split, run)).age


def _calibrated(model: AgeModel, faces: Faces, run: Path) -> AgeModel:
    ages = faces.ages(faces.rows("calibration"))
    calibration = evaluate.calibrate(_distributions(model, faces, "calibration", run), ages, model.spec.labels)
    return AgeModel(replace(model.spec, calibration=calibration), model.weights)


def _comparison(candidates: Sequence[_Candidate], faces: Faces, run: Path) -> dict[str, list[Metrics]]:
    """One comparison table over all held-out faces, and one a source."""
    test = faces.rows("test")
    ages = {candidate.name: _ages(candidate.model, faces, "test", run) for candidate in candidates}
    ages = {"median age": np.full(len(test), np.median(faces.ages(faces.rows("train"))), np.float32), **ages}
    models = [candidate.model for candidate in candidates]
    costs = dict(zip([c.name for c in candidates], cpu_ms_a_face(models, cache=run / "cache"), strict=True))
    sizes = {candidate.name: len(candidate.model.weights) / 1e6 for candidate in candidates}
    table = faces.table.iloc[test].reset_index(drop=True)
    places = {ALL: table.index} | {str(name): rows.index for name, rows in table.groupby("source", sort=False)}
    return {
        name: [
            replace(
                evaluate.measure(candidate, predicted[inside], table["age"].to_numpy()[inside]),
                worst=evaluate.worst_slice(table.loc[inside].assign(predicted=predicted[inside])),
                cost_ms=costs.get(candidate),
                megabytes=sizes.get(candidate),
            )
            for candidate, predicted in ages.items()
        ]
        for name, inside in places.items()
    }


def _metrics(model: AgeModel, faces: Faces, run: Path) -> dict[str, Any]:
    found = model.estimate(_distributions(model, faces, "test", run))
    ages = faces.ages(faces.rows("test"))
    return {
        "interval": {
            "coverage": evaluate.coverage_share(found.low, found.high, ages, model.spec.labels),
            "mean_width_years": float((found.high - found.low).mean()),
            "n": len(ages),
        },
        "faces": {str(split): int(n) for split, n in faces.table["split"].value_counts().items()},
        "bf16": _bf16_cost(model, found.age, faces, run),
    }


def _bf16_cost(model: AgeModel, in_f32: Floats, faces: Faces, run: Path) -> dict[str, float]:
    """What bf16 does to the held-out faces, years; empty where this CPU can't tell."""
    if not has_bf16():
        return {}
    true = faces.ages(faces.rows("test"))
    in_bf16 = model.estimate(_distributions(model, faces, "test", run, "bf16")).age
    moved = np.abs(in_bf16 - in_f32)
    return {
        "mae_change_years": float(np.abs(in_bf16 - true).mean() - np.abs(in_f32 - true).mean()),
        "mean_difference_years": float(moved.mean()),
        "max_difference_years": float(moved.max()),
    }


def _training(config: TrainConfig, start: Path | None, faces: Faces, run: Path) -> dict[str, Any]:
    """What the model card says of the training; of the start only its name, as paths are nobody's business."""
    counts = {name: faces.table[name].value_counts() for name in ("source", "reason", "split")}
    curves = [pd.read_csv(file).to_dict("records") for file in sorted(run.glob("member-*/curve.csv"))]
    return {
        "recipe": asdict(config),
        "start": start.name if start else None,
        "sources": {str(name): int(n) for name, n in counts["source"].items()},
        "dropped": {str(name): int(n) for name, n in counts["reason"].items()},
        "splits": {str(name): int(n) for name, n in counts["split"].items()},
        "curves": curves,
    }


def _save(model: AgeModel, faces: Faces, roots: dict[str, Path], start: Path | None, run: Path) -> Path:
    """Write all that `package` takes into RUN/model: the model, its reference rows, and the splits that it knows."""
    folder = run / "model"
    folder.mkdir(exist_ok=True)
    model.save(folder)
    used = faces.table[faces.table["split"].notna()]
    own = dict(zip(map(hash_key, used["content_hash"]), used["split"], strict=True))
    known = _earlier_splits(start) | own
    splits = pa.table({"key": pa.array(known, pa.uint64()), "split": pa.array(known.values(), pa.string())})
    pq.write_table(splits, folder / "splits.parquet", use_dictionary=["split"])
    pq.write_table(_reference(faces, folder, roots), folder / "reference.parquet")
    return folder


def _reference(faces: Faces, folder: Path, roots: dict[str, Path]) -> pa.Table:
    """The model's own rows on pictures held out from training, with `age_true` of each picture's largest face.

    Scored as an archive would be: crops in both modes, so that either mode of an archive finds its reference.
    """
    held_out = faces.table[faces.table["split"].isin(["calibration", "test"])]
    tables = []
    for (source, cut_as), rows in held_out.groupby(["source", "mode"]):
        truth = dict(zip(rows["path"], rows["age"].astype(float), strict=True))
        files = [FileRef(path, 0, 0) for path in truth]
        modes: tuple[Mode, ...] = ("crop", "detect") if cut_as == "crop" else ("detect",)
        for mode in modes:
            cache = folder.parent / "cache"
            job = Job(roots[str(source)], str(source), folder, mode, "openvino", "f32", cache, "reference")
            scored = [row | {"bytes": None, "mtime_ns": None} for row in Scorer(job).score(files).rows]
            ages = [truth[row["path"]] if row.get("face") == 0 else None for row in scored]
            table = pa.Table.from_pylist(scored, SCHEMA)
            tables.append(table.append_column("age_true", pa.array(ages, pa.float32())))
    return pa.concat_tables(tables)


def _require_enough(faces: Faces, config: TrainConfig) -> None:
    sizes = {split: len(faces.rows(split)) for split in SPLITS}
    if sizes["train"] < config.batch_size or sizes["validation"] < FOLDS or not all(sizes.values()):
        raise LabelError(f"The faces are too few to train on, in batches of {config.batch_size}: {sizes}.")


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder {run} can't be made: {error.strerror}.") from error


def _write_tables(run: Path, tables: dict[str, list[Metrics]]) -> None:
    records = {name: evaluate.as_records(table) for name, table in tables.items()}
    (run / "comparison.json").write_text(json.dumps(records, indent=1))
    text = "\n".join(f"## {name}\n\n{evaluate.as_markdown(table)}" for name, table in tables.items())
    (run / "comparison.md").write_text(text)


def _log_faces(faces: Faces, log: Log) -> None:
    counts = faces.table["split"].value_counts().to_dict()
    dropped = faces.table["reason"].value_counts().to_dict()
    log(f"Faces: {', '.join(f'{n} {split}' for split, n in counts.items())}; dropped: {dropped or 'none'}")
    if doubtful := int(faces.table["near_duplicate_ages_differ"].sum()):
        log(f"{doubtful} of them are near-duplicates with ages more than 5 years apart: see faces.parquet.")
