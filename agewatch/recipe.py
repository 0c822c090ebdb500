"""The settings of a training run."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agewatch.errors import UsageError


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
        """Read a recipe file. Raises UsageError where it is no TOML or has unknown names."""
        try:
            return cls(**{key: _frozen(value) for key, value in tomllib.loads(path.read_text()).items()})
        except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
            raise UsageError(f"The recipe {path} can't be used: {error}.") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
