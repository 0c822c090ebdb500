"""The settings of a training run."""

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from agewatch.errors import UsageError

_LEAST = {
    "image_size": 1, "members": 1, "epochs": 1, "small_size": 32, "patience": 1, "batch_size": 1, "weight_decay": 0,
    "source_power": 0, "ema_decay": 0, "seed": 0,
}  # fmt: skip
_POSITIVE = ("std", "learning_rate", "layer_decay", "label_sigma")


@dataclass(frozen=True)
class TrainConfig:
    """A recipe. `mean` and `std` are per RGB channel for pixels in 0..1; sizes in pixels.

    Where training starts from a model file, its architecture and preprocessing win over the recipe's.
    """

    backbone: str = "mobilenetv1_100"
    kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # start from the weights that timm downloads; needs a network
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, timm's default
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    image_size: int = 160
    members: int = 1  # networks of the ensemble, alike but for their seeds
    epochs: int = 4
    small_size: int | None = None  # the first half of the epochs run at this side (progressive resizing)
    patience: int = 3  # epochs without a better validation MAE, after which training ends
    batch_size: int = 64
    learning_rate: float = 8e-4  # of the head
    layer_decay: float = 0.9  # each earlier layer learns so much slower (ELECTRA, Clark et al., ICLR 2020)
    weight_decay: float = 0.05
    label_sigma: float = 2.0  # years; labels of such data are off by about as much
    source_power: float = 0.5  # sources are drawn in proportion to their size to this power (mT5, Xue et al., 2021)
    ema_decay: float = 0.998
    serve: str | None = None  # name of the candidate to leave for packaging; default: the best on validation
    seed: int = 0

    @classmethod
    def from_toml(cls, path: Path) -> "TrainConfig":
        """Read a recipe file. Raises UsageError where it is no TOML, or has unknown names or impossible values."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            config = cls(**{key: _frozen(value) for key, value in content.items()})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
            raise UsageError(f"The recipe {path} can't be used: {error}.") from error
        for name, hint in get_type_hints(cls).items():
            if name in content and (wrong := _wrong(name, getattr(config, name), hint)):
                raise UsageError(f"The recipe {path} can't be used: {name} = {content[name]!r} {wrong}.")
        return config


def _wrong(name: str, value: Any, hint: Any) -> str:
    """What is wrong with a value, as the end of a sentence; empty where nothing is."""
    if not _fits(value, hint):
        return f"is no {hint if get_args(hint) else hint.__name__}"
    if name in _LEAST and value < _LEAST[name]:
        return f"is below {_LEAST[name]}"
    if name in _POSITIVE and min(value if isinstance(value, tuple) else (value,)) <= 0:
        return "is not above 0"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:  # TOML writes 1.0 as 1 too, and knows inf and nan
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is (origin or hint)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
