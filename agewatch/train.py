"""Labelled faces -> candidates on one shared evaluation, in the order it runs."""

import dataclasses
import json
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVR

from agewatch import evaluate, finetune
from agewatch.archive import FileRef
from agewatch.engine import Engine, has_bf16, open_engine
from agewatch.errors import LabelError, ModelError, UsageError
from agewatch.evaluate import Metrics
from agewatch.images import RGB
from agewatch.labels import SPLITS, Faces, prepare, read_sources
from agewatch.model import AgeModel, Calibration, Floats, Labels, Member, Preprocessing, Spec
from agewatch.network import AgeNetwork, to_bytes
from agewatch.predictions import SCHEMA
from agewatch.rows import Job, Mode, Scorer

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainConfig:
    """A recipe. `mean` and `std` are per RGB channel for pixels in 0..1; sizes in pixels.

    When training starts from a model file, its architecture and preprocessing win over the recipe's.
    """

    backbone: str = "mobilenetv1_100"
    kwargs: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, timm's default
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    image_size: int = 160
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 4e-4  # of the backbone; the new head learns four times as fast
    weight_decay: float = 0.05
    label_sigma: float = 2.0  # years; labels of such data are off by about as much
    ema_decay: float = 0.998
    seed: int = 0

    @classmethod
    def from_toml(cls, path: Path) -> "TrainConfig":
        """Read a recipe file. Raises UsageError where it is no TOML or has unknown names."""
        try:
            return cls(**{key: _frozen(value) for key, value in tomllib.loads(path.read_text()).items()})
        except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
            raise UsageError(f"The recipe {path} can't be used: {error}.") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Trained:
    """What a training run leaves: its folder, the folder of the model to package, and the comparison tables."""

    run: Path
    model_folder: Path
    tables: dict[str, list[Metrics]]


def train(
    sources: Sequence[Path],
    *,
    run: Path,
    config: TrainConfig,
    start: Path | None = None,
    workers: int = 2,
    log: Log = print,
) -> Trained:
    """Train all candidates on labelled pictures and leave everything about them in the folder `run`.

    `start` is a safetensors file of the recipe's backbone or an agewatch model file; without it the network starts
    from chance. A run that was interrupted continues after its last whole epoch when it is called again with the
    same arguments. Raises UsageError, LabelError or ModelError.
    """
    torch.manual_seed(config.seed)
    spec, state = _starting_point(config, start)
    labelled = read_sources(sources)
    log(f"Reading {len(labelled)} labelled pictures ...")
    faces = prepare(
        labelled, size=spec.image_size, chip_scale=spec.preprocessing.chip_scale, workers=workers,
    )  # fmt: skip
    _require_enough(faces, config)
    run.mkdir(parents=True, exist_ok=True)
    spec = replace(spec, data_hash=_data_hash(faces), versions=_versions(), git_commit=_git_commit())
    _claim_run(run, config, spec, start)
    faces.table.to_parquet(run / "faces.parquet")
    _log_faces(faces, log)

    network = AgeNetwork(spec)
    _load_start(network, state)
    log("Ridge and SVR on frozen embeddings ...")
    frozen = _frozen_candidates(network, faces)

    log("CNN ...")
    finetune.fit(network, faces, config, run=run, log=log)
    folder = run / "cnn"
    folder.mkdir(exist_ok=True)
    model = AgeModel(replace(spec, calibration=Calibration()), to_bytes(network.state_dict()))  # rounded from here on
    engine = open_engine(model, cache=run / "cache", engine="openvino", precision="f32")
    rows = faces.rows("calibration")
    calibration = evaluate.calibrate(distributions(engine, faces.chips[rows]), faces.ages(rows), spec.labels)
    model = AgeModel(replace(model.spec, calibration=calibration), model.weights)

    test = faces.rows("test")
    probabilities = distributions(engine, faces.chips[test])
    ages = model.estimate(probabilities).age
    mean: Floats = np.stack([frozen["linear SVR on frozen embeddings"], ages]).mean(axis=0)
    candidates = {**frozen, "CNN": ages, "mean of SVR and CNN": mean}
    tables = _comparison(faces, test, candidates)
    metrics = _metrics(model, faces, test, probabilities, tables) | {"bf16": _bf16_cost(model, faces, test, run)}
    model = AgeModel(replace(model.spec, metrics=metrics), model.weights)
    model.save(folder)
    pq.write_table(
        _reference(faces, folder, {item.source.name: item.source for item in labelled}),
        folder / "reference.parquet",
    )
    _write_tables(run, tables)
    return Trained(run, folder, tables)


def distributions(engine: Engine, chips: RGB) -> Floats:
    """Run an engine over many chips (n, size, size, 3); returns (n, bins)."""
    batch = 64
    return np.concatenate([engine(chips[start : start + batch]) for start in range(0, len(chips), batch)])


def _load_start(network: AgeNetwork, state: dict[str, torch.Tensor]) -> None:
    """Load all that the starting point has; only a new head may be missing in it."""
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


def _starting_point(config: TrainConfig, start: Path | None) -> tuple[Spec, dict[str, torch.Tensor]]:
    if start is not None and start.suffix != ".safetensors":
        model = AgeModel.load(start)
        return replace(model.spec, metrics={}, calibration=Calibration()), dict(model.network().state_dict())
    spec = Spec(
        name="agewatch",
        version="0",
        members=(Member(config.backbone, config.image_size, config.kwargs),),
        preprocessing=Preprocessing(config.mean, config.std),
        labels=Labels(),
    )
    if start is None:
        return spec, {}
    try:
        weights = load_file(start)
    except Exception as error:  # safetensors raises its own and OS errors alike
        raise ModelError(f"The weights {start} can't be read: {error}.") from error
    return spec, {f"members.0.{name}": tensor for name, tensor in weights.items()}


def _frozen_candidates(network: AgeNetwork, faces: Faces) -> dict[str, Floats]:
    """Test-split ages of the candidates that do not train the network: median, ridge and linear SVR."""
    splits = {name: faces.rows(name) for name in ("train", "validation", "test")}
    embeddings = {name: _embeddings(network, faces.chips[rows]) for name, rows in splits.items()}
    ages = {name: faces.ages(rows) for name, rows in splits.items()}

    def fitted(regressor: RidgeCV | LinearSVR) -> Callable[[str], Floats]:
        model = TransformedTargetRegressor(make_pipeline(StandardScaler(), regressor), transformer=StandardScaler())
        model.fit(embeddings["train"], ages["train"])
        return lambda split: np.asarray(model.predict(embeddings[split]).clip(0, 100), dtype=np.float32)

    def validation_mae(predict: Callable[[str], Floats]) -> float:
        return float(np.abs(predict("validation") - ages["validation"]).mean())

    ridge = fitted(RidgeCV(np.logspace(0, 5, 11)))
    # The primal of the squared loss: the only one of liblinear's SVRs that is fast on thousands of faces.
    svrs = [
        fitted(LinearSVR(C=c, epsilon=0.05, loss="squared_epsilon_insensitive", dual=False)) for c in (1e-4, 1e-3, 1e-2)
    ]
    return {
        "median age": np.full(len(splits["test"]), np.median(ages["train"]), np.float32),
        "ridge on frozen embeddings": ridge("test"),
        "linear SVR on frozen embeddings": min(svrs, key=validation_mae)("test"),
    }


def _embeddings(network: AgeNetwork, chips: RGB, batch: int = 128) -> Floats:
    member: Any = network.eval().members[0]
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
        for start in range(0, len(chips), batch):
            normal = network.normalise(torch.from_numpy(chips[start : start + batch]))
            normal = normal.contiguous(memory_format=torch.channels_last)
            found.append(member.forward_head(member.forward_features(normal), pre_logits=True).float().numpy())
    return np.concatenate(found)


def _comparison(faces: Faces, test: npt.NDArray[np.intp], candidates: dict[str, Floats]) -> dict[str, list[Metrics]]:
    """One comparison table over all held-out faces, and one a source."""
    sources = faces.table["source"].to_numpy()[test]
    everywhere = np.ones(len(test), bool)
    slices = {"all": everywhere} | {str(source): sources == source for source in dict.fromkeys(sources)}
    return {
        name: [
            evaluate.measure(candidate, ages[inside], faces.ages(test)[inside])
            for candidate, ages in candidates.items()
        ]
        for name, inside in slices.items()
    }


def _metrics(
    model: AgeModel,
    faces: Faces,
    test: npt.NDArray[np.intp],
    probabilities: Floats,
    tables: dict[str, list[Metrics]],
) -> dict[str, Any]:
    found = model.estimate(probabilities)
    return {
        "held_out": {name: evaluate.as_records(table) for name, table in tables.items()},
        "interval": {
            "coverage": evaluate.coverage_share(found.low, found.high, faces.ages(test), model.spec.labels),
            "mean_width_years": float((found.high - found.low).mean()),
            "n": len(test),
        },
        "faces": {str(split): int(n) for split, n in faces.table["split"].value_counts().items()},
    }


def _bf16_cost(model: AgeModel, faces: Faces, test: npt.NDArray[np.intp], run: Path) -> dict[str, float]:
    """What bf16 does to the held-out faces, years; empty where this CPU can't tell."""
    if not has_bf16():
        return {}
    found = {}
    for precision in ("f32", "bf16"):
        engine = open_engine(model, cache=run / "cache", engine="openvino", precision=precision)
        found[precision] = model.estimate(distributions(engine, faces.chips[test])).age
    true, moved = faces.ages(test), np.abs(found["bf16"] - found["f32"])
    mae = {precision: float(np.abs(ages - true).mean()) for precision, ages in found.items()}
    return {
        "mae_change_years": mae["bf16"] - mae["f32"],
        "mean_difference_years": float(moved.mean()),
        "max_difference_years": float(moved.max()),
    }


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
    if sizes["train"] < config.batch_size or not all(sizes.values()):
        raise LabelError(f"The faces are too few to train on, in batches of {config.batch_size}: {sizes}.")


def _claim_run(run: Path, config: TrainConfig, spec: Spec, start: Path | None) -> None:
    """Write the resolved configuration, or refuse a folder that holds another run's."""
    resolved = {
        "config": dataclasses.asdict(config),
        "start": str(start.resolve()) if start else None,
        "data_hash": spec.data_hash,
        "members": [dataclasses.asdict(member) for member in spec.members],
    }
    text = json.dumps(resolved, indent=1, sort_keys=True)
    file = run / "config.json"
    if file.exists() and file.read_text() != text:
        raise UsageError(f"The folder {run} holds another training run: choose a new one.")
    file.write_text(text)


def _write_tables(run: Path, tables: dict[str, list[Metrics]]) -> None:
    records = {name: evaluate.as_records(table) for name, table in tables.items()}
    (run / "comparison.json").write_text(json.dumps(records, indent=1))
    text = "\n".join(f"## {name}\n\n{evaluate.as_markdown(table)}" for name, table in tables.items())
    (run / "comparison.md").write_text(text)


def _log_faces(faces: Faces, log: Log) -> None:
    counts = faces.table["split"].value_counts().to_dict()
    dropped = faces.table["reason"].value_counts().to_dict()
    log(f"Faces: {', '.join(f'{n} {split}' for split, n in counts.items())}; dropped: {dropped or 'none'}")


def _data_hash(faces: Faces) -> str:
    columns = faces.table[["source", "path", "age", "content_hash", "split"]].astype(str)
    return blake2b(columns.sort_values(["source", "path"]).to_csv(index=False).encode(), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "timm", "openvino", "pillow", "numpy")}


def _git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; empty where this is no checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return answer.stdout.strip()
