"""A tiny model for tests: random but fixed weights, in the form that training leaves behind."""

import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from agewatch.estimator.model import AgeModel
from agewatch.estimator.network import AgeNetwork, to_bytes
from agewatch.estimator.spec import Band, Calibration, Member, Preprocessing, Spec
from agewatch.release import records


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write model.json, model.safetensors and reference.parquet into a folder, and return it."""
    spec = Spec(
        name="agewatch",
        version="0",
        members=(Member("test_efficientnet", 64),),
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        calibration=Calibration(0.9, (Band(0, 100, 1000, 0.9),)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AgeNetwork(spec).eval()
        _tell_pictures_apart(network)
    folder.mkdir(parents=True, exist_ok=True)
    AgeModel(spec, to_bytes(network.state_dict())).save(folder)
    # Rows that stand in for a reference: nothing that uses this model judges them.
    # Nor is anything of the content that this stands for ever seen.
    pq.write_table(pa.table({"key": pa.array([1], pa.uint64()), "split": ["train"]}), folder / "splits.parquet")
    pq.write_table(pa.table({"path": ["a.png"], "age": [30.0], "age_true": [31.0]}), folder / "reference.parquet")
    return folder


def _tell_pictures_apart(network: AgeNetwork) -> None:
    """Untrained, every picture gets about 50 years: sharpen the last layer until pictures differ by years."""
    [member] = network.members
    noise = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = member(network.normalise(noise))
        member.get_parameter("classifier.weight").mul_(2 / logits.std())


def model_file(folder: Path, version: str) -> Path:
    """Put a model file into a store, on record there; nothing runs its network, so its weights are only bytes."""
    spec = Spec("agewatch", version, (Member("test_efficientnet", 64),), Preprocessing((0, 0, 0), (1, 1, 1)))
    folder.mkdir(exist_ok=True)
    file = folder / f"agewatch-{version}.mar"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.json", spec.to_json())
        archive.writestr("model.safetensors", f"weights of {version}")
    records.keep(folder, records.Code.of(file, "packaged"))
    return file
