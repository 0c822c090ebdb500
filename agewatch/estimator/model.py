"""The self-describing age model: weights, architecture, preprocessing, labels and calibration, in one file.

A model file is a `.mar` (a zip that TorchServe serves) or the folder it was unpacked to; both hold `model.json`
and `model.safetensors`. Torch is imported only when the network itself is asked for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agewatch.errors import ModelError
from agewatch.estimator.mar import read
from agewatch.estimator.spec import Calibration, Floats, Labels, Mode, Spec

if TYPE_CHECKING:
    from agewatch.estimator.network import AgeNetwork


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

    @cached_property  # hashing 13 MB takes longer than a picture
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
        return cls(Spec.from_json(read(path, "model.json")), read(path, "model.safetensors"))


def read_reference(path: Path) -> bytes:
    """Return the Parquet bytes of the model's reference rows. Raises ModelError where the model has none."""
    return read(path, "reference.parquet")


def read_splits(path: Path) -> bytes | None:
    """Return the Parquet bytes of the split of every picture the model knows; None for a model without them.

    Columns: key (uint64, the first 64 bits of the content hash) and split. Raises ModelError where there is no model.
    """
    read(path, "model.json")
    try:
        return read(path, "splits.parquet")
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
