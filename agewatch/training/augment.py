"""A chip -> a plausible other photograph of the same face, as archives hold them: for training only."""

import cv2
import numpy as np
import simplejpeg

from agewatch.estimator.images import RGB

SMALLEST_FACE = 40
"""Faces are shown to training as if they had been photographed with as few pixels."""


def augment(chip: RGB, random: np.random.Generator, *, size: int) -> RGB:
    """Move, mirror, coarsen, recompress, expose and partly cover a chip (any side); returns (size, size, 3)."""
    seen = _moved(chip, random, size)
    if random.random() < 0.25:
        seen = _coarsened(seen, random)
    if random.random() < 0.15:
        seen = np.asarray(cv2.GaussianBlur(seen, (0, 0), random.uniform(0.5, 1.8)), dtype=np.uint8)
    if random.random() < 0.1:
        seen = np.repeat(cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    seen = np.asarray(cv2.LUT(seen, _exposure(random)), dtype=np.uint8)
    if random.random() < 0.25:
        seen = _recompressed(seen, random)
    if random.random() < 0.25:
        _erase(seen, random)
    return np.asarray(seen, dtype=np.uint8)


def _moved(chip: RGB, random: np.random.Generator, size: int) -> RGB:
    side = chip.shape[0]
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), random.normal(0, 8), random.uniform(0.88, 1.15))
    turn[:, 2] += random.uniform(-0.05, 0.05, 2) * side
    turn[0] *= random.uniform(0.93, 1.07)  # narrower or wider
    if random.random() < 0.5:
        turn[0] = -turn[0]
        turn[0, 2] += side - 1
    turn *= size / side
    moved = cv2.warpAffine(chip, turn, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)


def _coarsened(chip: RGB, random: np.random.Generator) -> RGB:
    side = int(random.integers(min(SMALLEST_FACE, chip.shape[0]), chip.shape[0] + 1))
    small = cv2.resize(chip, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, chip.shape[:2], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _exposure(random: np.random.Generator) -> RGB:
    """A look-up table (256, 1, 3): gain and white balance, gamma, and an offset."""
    gain = random.uniform(0.75, 1.3) * random.uniform(0.93, 1.07, 3)
    gamma = np.exp(random.normal(0, 0.2))
    levels = (np.linspace(0, 1, 256)[:, None] ** gamma) * gain * 255 + random.uniform(-20, 20)
    return np.asarray(np.clip(levels, 0, 255), dtype=np.uint8)[:, None, :]


def _recompressed(chip: RGB, random: np.random.Generator) -> RGB:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(chip), quality=int(random.integers(25, 90)))
    return np.asarray(simplejpeg.decode_jpeg(data), dtype=np.uint8).copy()


def _erase(chip: RGB, random: np.random.Generator) -> None:
    """Cover a rectangle of 2 to 15 % with one colour (random erasing, Zhong et al., AAAI 2020)."""
    size = chip.shape[0]
    area, aspect = random.uniform(0.02, 0.15), np.exp(random.uniform(-1, 1))
    height, width = (max(1, int(size * np.sqrt(area * ratio))) for ratio in (aspect, 1 / aspect))
    top, left = random.integers(0, max(1, size - height)), random.integers(0, max(1, size - width))
    chip[top : top + height, left : left + width] = random.integers(0, 256, 3)
