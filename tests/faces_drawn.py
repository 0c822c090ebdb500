"""Drawn pictures whose brightness tells the age: enough for a network to learn from, and nobody's face."""

from pathlib import Path

import numpy as np
from pictures import encoded
from PIL import Image


def drawn_face(age: int, seed: int) -> bytes:
    """A PNG of 80 x 80 pixels: blotches of the seed's own, the brighter the older."""
    random = np.random.default_rng(seed)
    blotches = Image.fromarray(random.integers(0, 120, (6, 6, 3), np.uint8)).resize((80, 80))
    return encoded(Image.fromarray((np.asarray(blotches) + age).clip(0, 255).astype(np.uint8)))


def write_age_folders(root: Path, *, ages: list[int], each: int) -> None:
    """Write `each` drawn pictures an age in the layout of one folder an age."""
    for age in ages:
        folder = root / f"{age:03}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (folder / f"{number:03}.png").write_bytes(drawn_face(age, seed=age * 1000 + number))
