"""The settings of a training run."""

import tomllib
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from agewatch.errors import UsageError

AtLeast1 = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
class TrainConfig:
    """A recipe. `mean` and `std` are per RGB channel for pixels in 0..1; sizes in pixels.

    Where training starts from a model file, its architecture and preprocessing win over the recipe's. Impossible
    values raise pydantic's ValidationError.
    """

    backbone: str = "mobilenetv1_100"
    kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False  # start from the weights that timm downloads; needs a network
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's, timm's default
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    image_size: AtLeast1 = 160
    members: AtLeast1 = 1  # networks of the ensemble, alike but for their seeds
    epochs: AtLeast1 = 4
    small_size: Annotated[int, Field(ge=32)] | None = None  # of the first half of the epochs (progressive resizing)
    patience: AtLeast1 = 3  # epochs without a better validation MAE, after which training ends
    batch_size: AtLeast1 = 64
    learning_rate: Positive = 8e-4  # of the head
    layer_decay: Positive = 0.9  # each earlier layer learns so much slower (ELECTRA, Clark et al., ICLR 2020)
    weight_decay: NotNegative = 0.05
    label_sigma: Positive = 2.0  # years; labels of such data are off by about as much
    source_power: NotNegative = 0.5  # sources are drawn by their size to this power (mT5, Xue et al., 2021)
    ema_decay: NotNegative = 0.998
    serve: str | None = None  # name of the candidate to leave for packaging; default: the best on validation
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def from_toml(cls, path: Path) -> "TrainConfig":
        """Read a recipe file. Raises UsageError where it is no TOML, or has unknown names or impossible values."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            content |= {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
            return cls(**content)
        except ValidationError as error:
            wrong = error.errors()[0]
            what = f"{'.'.join(map(str, wrong['loc']))} = {wrong['input']!r}"
            raise UsageError(f"The recipe {path} can't be used: {what}: {wrong['msg']}.") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"The recipe {path} can't be used: {error}.") from error
