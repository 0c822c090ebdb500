"""The pipeline that a competent user would write: Pillow, timm's transform, DataLoader workers, eager torch.

Each picture is taken as one face, as no such pipeline comes with a detector. All members of the model run; it
normalises by itself, so the transform does not. Usage: reference.py FOLDER MODEL.mar
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform  # type: ignore[attr-defined]  # public, but not re-exported by name
from torch.utils.data import DataLoader, Dataset

from agewatch.estimator.model import AgeModel


class Pictures(Dataset[torch.Tensor]):
    """All JPEGs below a folder, resized by timm, as uint8 tensors (3, size, size)."""

    def __init__(self, folder: Path, size: int) -> None:
        self._paths = sorted(folder.rglob("*.jpg"))
        self._transform = create_transform((3, size, size), crop_pct=1.0, normalize=False)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = self._transform(Image.open(self._paths[index]).convert("RGB"))
        return tensor


def main() -> None:
    """Print the mean age, so that nothing is optimised away."""
    model = AgeModel.load(Path(sys.argv[2]))
    network = model.network()
    pictures = Pictures(Path(sys.argv[1]), model.spec.image_size)
    torch.set_num_threads(1)
    ages = []
    with torch.inference_mode():
        for batch in DataLoader(pictures, batch_size=32, num_workers=2):
            ages += (network(batch.permute(0, 2, 3, 1)) @ network.years).tolist()
    print(sum(ages) / max(len(ages), 1))


if __name__ == "__main__":
    main()
