"""The self-describing age model: weights, architecture, preprocessing, labels and calibration, in one file.

A model file is a `.mar` (a zip that TorchServe serves) or the folder it was unpacked to; both hold `model.json`
and `model.safetensors`. Torch is imported only when the network itself is asked for.
"""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from agewatch.errors import ModelError

if TYPE_CHECKING:
    from agewatch.estimator.network import AgeNetwork

PREPROCESSING_REVISION = 2
"""Raised whenever decoded pixels, chips or quality measures change; a golden test guards it."""

Floats = npt.NDArray[np.float32]
Mode = Literal["detect", "crop"]
"""How faces are found: by the detector, or each picture is one."""


@dataclass(frozen=True)
class Svr:
    """A support vector regression on a member's embedding: a normal distribution around the age that it gives.

    share: its part of the member's distribution, 0..1; 1 leaves the network without a head of its own. sigma: the
    normal distribution's, years, at least 1; near the ends of the bins a smaller one is used.
    """

    share: float
    sigma: float


@dataclass(frozen=True)
class Member:
    """One timm network of the model: name, keyword arguments, input side in pixels, and its part of the distribution.

    `weight` is relative to the other members'. A `mirrored` member averages a face and its mirror image.
    """

    backbone: str
    image_size: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    mirrored: bool = False
    svr: Svr | None = None


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input: chip geometry, and per-channel mean and std of RGB in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    chip_scale: float = 1.03
    aligned: bool = False
    revision: int = PREPROCESSING_REVISION


@dataclass(frozen=True)
class Labels:
    """The bins of the age distribution: whole years from `lowest` to `highest`, both included."""

    lowest: int = 0
    highest: int = 100

    @property
    def years(self) -> Floats:
        """The age of each bin, shape (bins,)."""
        return np.arange(self.lowest, self.highest + 1, dtype=np.float32)


@dataclass(frozen=True)
class Band:
    """Conformal quantile for true ages `low`..`high` (years), learnt from `n` calibration faces.

    These are of one mode, and the band is for that mode; None: of any.
    """

    low: int
    high: int
    n: int
    quantile: float
    mode: Mode | None = None


@dataclass(frozen=True)
class Calibration:
    """Split-conformal calibration by mode and true age; without bands the interval is the whole range."""

    coverage: float = 0.9
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Spec:
    """What `model.json` holds."""

    name: str
    version: str
    members: tuple[Member, ...]
    preprocessing: Preprocessing
    labels: Labels = Labels()
    calibration: Calibration = Calibration()
    metrics: dict[str, Any] = field(default_factory=dict)
    data_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""

    @property
    def image_size(self) -> int:
        """Side of a chip, pixels; all members share it."""
        return self.members[0].image_size

    def to_json(self) -> str:
        """Serialise as `model.json`."""
        content = dataclasses.asdict(self)
        return json.dumps({"architecture": {"members": content.pop("members")}, **content}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Spec":
        """Parse `model.json`. Raises ModelError where it is damaged or needs another revision of this code."""
        try:
            content = json.loads(text)
            calibration = content.pop("calibration")
            spec = cls(
                members=tuple(map(_member, content.pop("architecture")["members"])),
                preprocessing=_preprocessing(content.pop("preprocessing")),
                labels=Labels(**content.pop("labels")),
                calibration=Calibration(calibration["coverage"], tuple(Band(**band) for band in calibration["bands"])),
                **content,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"The model's model.json is damaged: {error}.") from error
        if spec.preprocessing.revision != PREPROCESSING_REVISION or spec.preprocessing.aligned:
            raise ModelError(
                f"The model {spec.name}-{spec.version} needs preprocessing revision {spec.preprocessing.revision}"
                f"{', aligned chips' if spec.preprocessing.aligned else ''}; this agewatch implements revision"
                f" {PREPROCESSING_REVISION} without alignment. Retrain the model or use the agewatch that made it."
            )
        if len({member.image_size for member in spec.members}) != 1:
            raise ModelError("The model's members need one common image_size.")
        return spec


@dataclass(frozen=True)
class Ages:
    """Age estimates in years, each of shape (n,): expectation and the calibrated interval around it."""

    age: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class AgeModel:
    """A model ready to be opened by an engine: its spec and the bytes of its safetensors file."""

    spec: Spec
    weights: bytes = field(repr=False)

    @property
    def hash12(self) -> str:
        """First 12 hex digits of BLAKE2b over the weights and everything that changes a prediction."""
        content = json.loads(self.spec.to_json())
        essence = {key: content[key] for key in ("architecture", "preprocessing", "labels", "calibration")}
        digest = blake2b(self.weights)
        digest.update(json.dumps(essence, sort_keys=True, separators=(",", ":")).encode())
        return digest.hexdigest()[:12]

    @property
    def id(self) -> str:
        """`NAME-VERSION@HASH12`, the model column of the predictions table."""
        return f"{self.spec.name}-{self.spec.version}@{self.hash12}"

    def network(self) -> "AgeNetwork":
        """Build the torch network with these weights, in evaluation mode. Raises ModelError where they do not fit."""
        from agewatch.estimator.network import AgeNetwork

        return AgeNetwork.from_weights(self.spec, self.weights)

    def ages(self, probabilities: Floats) -> Floats:
        """Turn distributions of shape (n, bins) into ages (n,), years."""
        return expectation(probabilities, self.spec.labels)

    def estimate(self, probabilities: Floats, modes: Sequence[Mode]) -> Ages:
        """Turn distributions of shape (n, bins) of faces found in n modes into ages and calibrated intervals, years."""
        return estimate(probabilities, modes, self.spec.labels, self.spec.calibration)

    def save(self, folder: Path) -> None:
        """Write `model.json` and `model.safetensors` into an existing folder."""
        (folder / "model.safetensors").write_bytes(self.weights)
        (folder / "model.json").write_text(self.spec.to_json())

    @classmethod
    def load(cls, path: Path) -> "AgeModel":
        """Open a `.mar` file, or the folder it was unpacked to. Raises ModelError where that is impossible."""
        return cls(Spec.from_json(_read(path, "model.json")), _read(path, "model.safetensors"))


def read_reference(path: Path) -> bytes:
    """Return the Parquet bytes of the model's reference rows. Raises ModelError where the model has none."""
    return _read(path, "reference.parquet")


def read_splits(path: Path) -> bytes | None:
    """Return the Parquet bytes of the split of every picture the model knows; None for a model without them.

    Columns: key (uint64, the first 64 bits of the content hash) and split. Raises ModelError where there is no model.
    """
    _read(path, "model.json")
    try:
        return _read(path, "splits.parquet")
    except ModelError:
        return None


def expectation(probabilities: Floats, labels: Labels) -> Floats:
    """The mean of each distribution of shape (n, bins), years."""
    return (probabilities @ labels.years).astype(np.float32)


def estimate(probabilities: Floats, modes: Sequence[Mode], labels: Labels, calibration: Calibration) -> Ages:
    """Expectation, and the hull of the conformal set {y : score(x, y) <= quantile of y's band in x's mode}, in years.

    The hull is widened to include the expectation, and falls back to it where the set is empty.
    """
    years = labels.years
    age = expectation(probabilities, labels)
    quantiles = {mode: band_quantiles(labels, calibration, mode) for mode in set(modes)}
    inside = conformity(probabilities) <= np.stack([quantiles[mode] for mode in modes])
    found = inside.any(axis=1)
    low = np.where(found, years[inside.argmax(axis=1)], age)
    high = np.where(found, years[::-1][inside[:, ::-1].argmax(axis=1)], age)
    return Ages(age, np.minimum(low, age).astype(np.float32), np.maximum(high, age).astype(np.float32))


def conformity(probabilities: Floats) -> Floats:
    """Nonconformity of every bin, shape (n, bins), 0..1: |2 F(y) - 1| with F the distribution up to mid-bin.

    Zero at the median; the rank score of distributional conformal prediction (Chernozhukov et al., PNAS 2021).
    """
    below = np.cumsum(probabilities, axis=1) - probabilities / 2
    return np.abs(2 * below - 1).astype(np.float32)


def band_quantiles(labels: Labels, calibration: Calibration, mode: Mode) -> Floats:
    """The quantile of every bin's band in a mode, shape (bins,); 1 (everything conforms) where there is no band."""
    quantiles = np.ones(len(labels.years), dtype=np.float32)
    for band in calibration.bands:
        if band.mode in (None, mode):
            quantiles[(labels.years >= band.low) & (labels.years <= band.high)] = band.quantile
    return quantiles


def _member(content: dict[str, Any]) -> Member:
    svr = content.get("svr")
    return Member(**{**content, "svr": svr and Svr(**svr)})


def _preprocessing(content: dict[str, Any]) -> Preprocessing:
    return Preprocessing(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)
    except FileNotFoundError as error:
        raise ModelError(f"There is no model at {path}.") from error
    except KeyError as error:
        raise ModelError(f"{path} holds no {name}: it is no agewatch model.") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"The model {path} can't be read: {error}.") from error
