"""Labelled faces -> candidates on one shared evaluation -> the model to package, in the order it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP client that it uses
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agewatch.errors import LabelError, ModelError, UsageError
from agewatch.estimator.engine import Precision, cpu_ms_a_face, has_bf16, open_engine
from agewatch.estimator.model import AgeModel
from agewatch.estimator.network import AgeNetwork
from agewatch.estimator.spec import Calibration, Floats, Member, Mode, Preprocessing, Spec
from agewatch.files import write_json, write_text
from agewatch.labelled import metrics
from agewatch.labelled.calibration import calibrate, covered
from agewatch.labelled.dataset import SPLITS, Faces, known_splits, prepare
from agewatch.labelled.metrics import Metrics
from agewatch.labelled.sources import read_sources
from agewatch.labelled.tables import as_markdown, as_records
from agewatch.scoring.content import hash_key
from agewatch.scoring.predictions import SCHEMA, Key
from agewatch.scoring.scorer import Job, Scorer, cores
from agewatch.sources import door
from agewatch.sources.source import FileRef
from agewatch.training import finetune
from agewatch.training.candidates import FOLDS, cnn_model, ensemble_model, features, linear_model, ridge, svr
from agewatch.training.provenance import claim, data_hash, git_commit, library_versions
from agewatch.training.recipe import TrainConfig

Log = Callable[[str], None]


RIDGE, SVR = "ridge on frozen embeddings", "linear SVR on frozen embeddings"
CNN, MIRRORED, ENSEMBLE = "CNN", "CNN, mirrored", "ensemble"
CANDIDATES = (RIDGE, SVR, CNN, MIRRORED, ENSEMBLE)
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


def train(
    sources: Sequence[Path],
    *,
    run: Path,
    config: TrainConfig,
    cache: Path,
    start: Path | None = None,
    workers: int | None = None,
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
    spec, networks, earlier = _starting_point(config, start)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The folder {run} can't be made: {error.strerror}.") from error
    labelled = read_sources(sources)
    roots = {item.source.name: item.source for item in labelled}
    if ALL in roots:
        raise UsageError(f"A source named {ALL!r} would be mixed up with the whole: rename it.")
    log(f"Reading {len(labelled)} labelled pictures ...")
    faces = prepare(
        labelled, spec.cut, workers=workers or cores(), cache=cache,
        earlier=earlier, progress=lambda done, total: log(f"  {done} of {total}"),
    )  # fmt: skip
    _require_enough(faces, config)
    spec = replace(spec, data_hash=data_hash(faces.table), versions=library_versions(), git_commit=git_commit())
    claim(run, config, spec, start)
    faces.table.to_parquet(run / "faces.parquet")
    _log_faces(faces, log)

    models, errors = _candidates(spec, networks, faces, config, run, log)
    chosen = config.serve or min(errors, key=errors.__getitem__)
    log(f"Served: {chosen} (validation MAE {errors[chosen]:.2f} years)")
    tables = _comparison(models, faces, run)
    records = {name: as_records(table) for name, table in tables.items()}
    model = _calibrated(models[chosen], faces, run)
    recorded = _metrics(model, faces, run) | {
        "faces": faces.counts("split"),
        "held_out": records,
        "served": chosen,
        "training": _training(config, start, faces, run),
    }
    folder = _save(AgeModel(replace(model.spec, metrics=recorded), model.weights), faces, roots, earlier, run)
    write_json(run / "comparison.json", records)
    text = (f"## {name}\n\n{as_markdown(table)}" for name, table in tables.items())
    write_text(run / "comparison.md", "\n".join(text))
    return Trained(run, folder, chosen, tables)


def _starting_point(config: TrainConfig, start: Path | None) -> tuple[Spec, list[AgeNetwork], dict[int, str]]:
    """The spec of one network, the networks as they start, and the splits of the pictures that these know."""
    earlier: dict[int, str] = {}
    states: Sequence[Mapping[str, Tensor]]
    if start is not None and start.suffix != ".safetensors":
        model = AgeModel.load(start)
        first = model.spec.members[0]
        alone = Member(first.backbone, first.image_size, first.kwargs)
        spec = replace(model.spec, members=(alone,), metrics={}, calibration=Calibration())
        states = [member.state_dict() for member in model.network().members]
        earlier = known_splits(start)
        if not earlier:
            raise UsageError(f"{start} does not say which pictures it learnt from, so none could be held out fairly.")
    else:
        member = Member(config.backbone, config.image_size, config.kwargs)
        spec = Spec("agewatch", "0", (member,), Preprocessing(config.mean, config.std))
        try:
            AgeNetwork(spec)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"The recipe's network can't be built: {error}.") from error
        states = [_weights(config, start)] * config.members
    return spec, [_started(spec, state, config.seed + index) for index, state in enumerate(states)], earlier


def _weights(config: TrainConfig, file: Path | None) -> Mapping[str, Tensor]:
    """The backbone's weights from a file, or from timm's hub where the recipe asks for them; else none."""
    if file is not None:
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"The weights {file} can't be read: {error}.") from error
    if not config.pretrained:
        return {}
    try:
        network = timm.create_model(config.backbone, pretrained=True, num_classes=0, **config.kwargs)
    except (OSError, HTTPError, SafetensorError, RuntimeError) as error:  # no network, broken off, torn, none there
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ModelError(f"timm can't get the weights of {config.backbone} here: {reason}") from error
    return network.state_dict()


def _started(spec: Spec, state: Mapping[str, Tensor], seed: int) -> AgeNetwork:
    """A network with the weights it starts from: all that there are, only a new head may be missing."""
    torch.manual_seed(seed)
    network = AgeNetwork(spec)
    member: Any = network.members[0]
    try:
        missing, unexpected = member.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"The weights to start from do not fit the network: {error}.") from error
    head = {id(parameter) for parameter in member.get_classifier().parameters()}
    new = {name for name, parameter in member.named_parameters() if id(parameter) in head}
    wrong = [name for name in missing if name not in new] + unexpected
    if state and wrong:
        raise ModelError(f"The weights to start from do not fit the network: {wrong[:3]}.")
    return network


def _candidates(
    spec: Spec, networks: list[AgeNetwork], faces: Faces, config: TrainConfig, run: Path, log: Log
) -> tuple[dict[str, AgeModel], dict[str, float]]:
    """Train and build every candidate but the median, the frozen ones before training changes the network.

    Returns the models and their mean absolute errors on the validation split, years, by name.
    """
    log("Ridge and SVR on frozen embeddings ...")
    seen = features(networks[0], faces)
    models = {
        RIDGE: linear_model(spec, networks[0], ridge(*seen)),
        SVR: linear_model(spec, networks[0], svr(*seen)),
    }
    for index, network in enumerate(networks):
        log(f"CNN {index + 1} of {len(networks)} ...")
        folder = run / f"member-{index}"
        folder.mkdir(exist_ok=True)
        finetune.fit(network, faces, config, seed=config.seed + index, run=folder, log=log)
    log("Ensemble ...")
    models |= {CNN: cnn_model(spec, networks[0]), MIRRORED: cnn_model(spec, networks[0], mirrored=True)}
    ages = partial(_ages, faces=faces, split="validation", run=run)
    errors = {name: float(np.abs(ages(model) - faces.true("validation")).mean()) for name, model in models.items()}
    models[ENSEMBLE], errors[ENSEMBLE] = ensemble_model(spec, networks, faces, ages)
    members = models[ENSEMBLE].spec.members
    shares = (f"{part.weight:.2f}{f' ({part.svr.share:.0%} SVR)' if part.svr else ''}" for part in members)
    log(f"Its weights: {', '.join(shares)}; validation MAE {errors[ENSEMBLE]:.2f}")
    return models, errors


def _distributions(model: AgeModel, faces: Faces, split: str, run: Path, precision: Precision = "f32") -> Floats:
    engine = open_engine(model, cache=run / "cache", engine="openvino", precision=precision)
    return np.concatenate([engine(chips) for chips in faces.batches(split)])


def _ages(model: AgeModel, faces: Faces, split: str, run: Path, precision: Precision = "f32") -> Floats:
    return model.ages(_distributions(model, faces, split, run, precision))


def _comparison(models: dict[str, AgeModel], faces: Faces, run: Path) -> dict[str, list[Metrics]]:
    """One comparison table over all held-out faces, and one a source."""
    table = faces.table.iloc[faces.rows("test")].reset_index(drop=True)
    ages = {"median age": np.full(len(table), np.median(faces.true("train")), np.float32)}
    ages |= {name: _ages(model, faces, "test", run) for name, model in models.items()}
    costs = dict(zip(models, cpu_ms_a_face(list(models.values()), cache=run / "cache"), strict=True))
    sizes = {name: len(model.weights) / 1e6 for name, model in models.items()}
    places = {ALL: table.index} | {str(name): rows.index for name, rows in table.groupby("source", sort=False)}
    return {
        source: [
            replace(
                metrics.measure(name, predicted[inside], table["age"].to_numpy()[inside]),
                worst=metrics.worst_slice(table.loc[inside].assign(predicted=predicted[inside])),
                cost_ms=costs.get(name),
                megabytes=sizes.get(name),
            )
            for name, predicted in ages.items()
        ]
        for source, inside in places.items()
    }


def _calibrated(model: AgeModel, faces: Faces, run: Path) -> AgeModel:
    found = _distributions(model, faces, "calibration", run)
    calibration = calibrate(found, faces.true("calibration"), faces.modes("calibration"), model.spec.labels)
    return AgeModel(replace(model.spec, calibration=calibration), model.weights)


def _metrics(model: AgeModel, faces: Faces, run: Path) -> dict[str, Any]:
    """The intervals on the held-out faces, and what bf16 does there, years; empty where this CPU can't tell."""
    found = model.estimate(_distributions(model, faces, "test", run), faces.modes("test"))
    true = faces.true("test")
    interval = {
        "coverage": float(covered(found.low, found.high, true, model.spec.labels).mean()),
        "mean_width_years": float((found.high - found.low).mean()),
        "n": len(true),
    }
    if not has_bf16():
        return {"interval": interval, "bf16": {}}
    in_bf16 = _ages(model, faces, "test", run, "bf16")
    moved = np.abs(in_bf16 - found.age)
    bf16 = {
        "mae_change_years": float(np.abs(in_bf16 - true).mean() - np.abs(found.age - true).mean()),
        "mean_difference_years": float(moved.mean()),
        "max_difference_years": float(moved.max()),
    }
    return {"interval": interval, "bf16": bf16}


def _training(config: TrainConfig, start: Path | None, faces: Faces, run: Path) -> dict[str, Any]:
    """What the model card says of the training; of the start only its name, as paths are nobody's business."""
    return {
        "recipe": asdict(config),
        "start": start.name if start else None,
        "sources": faces.counts("source"),
        "dropped": faces.counts("reason"),
        "splits": faces.counts("split"),
        "curves": [pd.read_csv(file).to_dict("records") for file in sorted(run.glob("member-*/curve.csv"))],
    }


def _save(model: AgeModel, faces: Faces, roots: dict[str, Path], earlier: dict[int, str], run: Path) -> Path:
    """Write all that `package` takes into RUN/model: the model, its reference rows, and the splits that it knows."""
    folder = run / "model"
    folder.mkdir(exist_ok=True)
    model.save(folder)
    used = faces.table[faces.table["split"].notna()]
    known = earlier | dict(zip(map(hash_key, used["content_hash"]), used["split"], strict=True))
    splits = pa.table({"key": pa.array(known, pa.uint64()), "split": pa.array(known.values(), pa.string())})
    pq.write_table(splits, folder / "splits.parquet", use_dictionary=["split"])
    pq.write_table(_reference(faces, folder, roots, run / "cache"), folder / "reference.parquet")
    return folder


def _reference(faces: Faces, folder: Path, roots: dict[str, Path], cache: Path) -> pa.Table:
    """The model's own rows on pictures held out from training, with `age_true` of each picture's largest face.

    Scored as an archive would be: crops in both modes, so that either mode of an archive finds its reference.
    """
    held_out = faces.table[faces.table["split"].isin(["calibration", "test"])]
    tables, model_id = [], AgeModel.load(folder).id
    for (source, cut_as), rows in held_out.groupby(["source", "mode"]):
        truth = dict(zip(rows["path"], rows["age"].astype(float), strict=True))
        modes: tuple[Mode, ...] = ("crop", "detect") if cut_as == "crop" else ("detect",)
        for mode in modes:
            job = Job(
                door.at(roots[str(source)]),
                Key(str(source), model_id, mode),
                "reference",
                folder,
                cache,
                "openvino",
                "f32",
            )
            scored = Scorer(job).score([FileRef(path) for path in truth]).rows
            ages = [truth[row["path"]] if row.get("face") == 0 else None for row in scored]
            table = pa.Table.from_pylist(scored, SCHEMA)
            tables.append(table.append_column("age_true", pa.array(ages, pa.float32())))
    return pa.concat_tables(tables)


def _require_enough(faces: Faces, config: TrainConfig) -> None:
    sizes = {split: len(faces.rows(split)) for split in SPLITS}
    if sizes["train"] < config.batch_size or sizes["validation"] < FOLDS or not all(sizes.values()):
        raise LabelError(f"The faces are too few to train on, in batches of {config.batch_size}: {sizes}.")


def _log_faces(faces: Faces, log: Log) -> None:
    splits = ", ".join(f"{n} {split}" for split, n in faces.counts("split").items())
    log(f"Faces: {splits}; dropped: {faces.counts('reason') or 'none'}")
    if doubtful := int(faces.table["near_duplicate_ages_differ"].sum()):
        log(f"{doubtful} of them are near-duplicates with ages more than 5 years apart: see faces.parquet.")
