"""What `model.json` says of a model: architecture, preprocessing, labels, calibration, and how it was made.

Values of a wrong type, length or range raise pydantic's ValidationError; read from a file, ModelError.
"""

import dataclasses
import json
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from agewatch.errors import ModelError

PREPROCESSING_REVISION = 4
"""Raised whenever decoded pixels, chips or quality measures change; a golden test guards it."""

Floats = npt.NDArray[np.float32]
Mode = Literal["detect", "crop"]
"""How faces are found: by the detector, or each picture is one."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """How a chip is cut: its side in pixels, and its side over the height of the face's box."""

    size: int
    scale: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the array that a chip is."""
        return (self.size, self.size, 3)


@dataclass(frozen=True, config=_CHECKED)
class Svr:
    """A support vector regression on a member's embedding: a normal distribution around the age that it gives.

    share: its part of the member's distribution, 0..1; 1 leaves the network without a head of its own. sigma: the
    normal distribution's, years, at least 1; near the ends of the bins a smaller one is used.
    """

    share: Share
    sigma: Annotated[float, Field(ge=1)]


@dataclass(frozen=True, config=_CHECKED)
class Member:
    """One timm network of the model: name, keyword arguments, input side in pixels, and its part of the distribution.

    `weight` is relative to the other members'. A `mirrored` member averages a face and its mirror image.
    """

    backbone: str
    image_size: Annotated[int, Field(ge=1)]
    kwargs: dict[str, Any] = field(default_factory=dict)
    weight: Positive = 1.0
    mirrored: bool = False
    svr: Svr | None = None


@dataclass(frozen=True, config=_CHECKED)
class Preprocessing:
    """How a picture becomes the network's input: chip geometry, and per-channel mean and std of RGB in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    chip_scale: Positive = 1.03
    aligned: bool = False
    revision: int = PREPROCESSING_REVISION


@dataclass(frozen=True, config=_CHECKED)
class Labels:
    """The bins of the age distribution: whole years from `lowest` to `highest`, both included."""

    lowest: Count = 0
    highest: Annotated[int, Field(le=150)] = 100

    def __post_init__(self) -> None:
        if self.highest <= self.lowest:
            raise ValueError(f"labels from {self.lowest} to {self.highest} are no range of ages")

    @property
    def years(self) -> Floats:
        """The age of each bin, shape (bins,)."""
        return np.arange(self.lowest, self.highest + 1, dtype=np.float32)


@dataclass(frozen=True, config=_CHECKED)
class Band:
    """Conformal quantile for true ages `low`..`high` (years), learnt from `n` calibration faces.

    These are of one mode, and the band is for that mode; None: of any.
    """

    low: int
    high: int
    n: Count
    quantile: Share
    mode: Mode | None = None


@dataclass(frozen=True, config=_CHECKED)
class Calibration:
    """Split-conformal calibration by mode and true age; without bands the interval is the whole range."""

    coverage: Share = 0.9
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True, config=_CHECKED)
class Spec:
    """What `model.json` holds."""

    name: Annotated[str, Field(min_length=1)]
    version: Annotated[str, Field(min_length=1)]
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
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

    @property
    def cut(self) -> Cut:
        """How its chips are cut."""
        return Cut(self.image_size, self.preprocessing.chip_scale)

    def to_json(self) -> str:
        """Serialise as `model.json`."""
        content = dataclasses.asdict(self)
        return json.dumps({"architecture": {"members": content.pop("members")}, **content}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Spec":
        """Parse `model.json`: every key, of its type, and no other.

        Raises ModelError where it is damaged or needs another revision of this code.
        """
        try:
            content = json.loads(text)
            flat = {**content, "members": content["architecture"]["members"]}
            del flat["architecture"]
            spec = _SPEC.validate_json(json.dumps(flat))
            if json.loads(spec.to_json()) != content:
                raise ValueError("keys are missing, or stand where they do not belong")
        except ValidationError as error:
            wrong = error.errors()[0]
            raise _damaged(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(str(error)) from error
        if spec.preprocessing.revision != PREPROCESSING_REVISION or spec.preprocessing.aligned:
            raise ModelError(
                f"The model {spec.name}-{spec.version} needs preprocessing revision {spec.preprocessing.revision}"
                f"{', aligned chips' if spec.preprocessing.aligned else ''}; this agewatch implements revision"
                f" {PREPROCESSING_REVISION} without alignment. Retrain the model or use the agewatch that made it."
            )
        if len({member.image_size for member in spec.members}) != 1:
            raise ModelError("The model's members need one common image_size.")
        return spec


_SPEC = TypeAdapter(Spec)


def _damaged(what: str) -> ModelError:
    return ModelError(f"The model's model.json is damaged: {what}.")
