"""Damaged bytes by chance: decoding them gives a picture or an ImageError, and nothing else."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from damage import KINDS, of_every_format
from pictures import ASTRONAUT, encoded
from PIL import Image
from raws import MAKERS

from agewatch.errors import ImageError
from agewatch.estimator.images import decode
from agewatch.scoring import pool

SECONDS = float(os.environ.get("AGEWATCH_FUZZ_SECONDS", 600 if "AGEWATCH_SOAK" in os.environ else 45))
SHARD = 200
MODES = (
    ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "TIFF"), ("1", "TIFF"),
    ("L", "BMP"), ("RGBA", "AVIF"), ("RGBA", "HEIF"),
)  # fmt: skip


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", metadata=None, **options)
    return file.getvalue()


@dataclass(frozen=True)
class Fuzz(pool.Task[int, Counter[str]]):
    """Decoding a damaged copy for every seed; each is damaged up to three times over."""

    whole: tuple[bytes, ...]

    def open(self) -> pool.Work[int, Counter[str]]:
        def work(seeds: Sequence[int], starts: Callable[[], None]) -> Counter[str]:
            found: Counter[str] = Counter()
            for seed in seeds:
                starts()
                found[self.decode(seed)] += 1
            return found

        return work

    def give_up(self, item: int, why: str) -> Counter[str]:
        return Counter({f"seed {item} {why}": 1})

    def decode(self, seed: int) -> str:
        random = np.random.default_rng(seed)
        data, damages = self.whole[random.integers(len(self.whole))], list(KINDS.values())
        for _ in range(random.integers(1, 4)):
            data = damages[random.integers(len(damages))](data, random) if len(data) > 9 else data
        try:
            picture = decode(data, min_side=[None, 64][random.integers(2)])
        except ImageError as refusal:
            return refusal.code
        except Exception as error:
            return f"seed {seed}: {error!r}"
        whole = picture.rgb.ndim == 3 and picture.rgb.shape[2] == 3 and picture.rgb.dtype == np.uint8
        return "picture" if whole else f"seed {seed}: {picture.rgb.shape}"


def test_damaged_bytes_are_a_picture_or_a_refusal() -> None:
    small = Image.open(ASTRONAUT).convert("RGB").crop((130, 20, 330, 240)).resize((100, 110))
    whole = [*of_every_format(small).values()]
    whole += [encoded(small.convert(mode), form) for mode, form in MODES]
    deep = np.asarray(small).astype(np.uint16) * 257
    whole += [tiff(deep, compression=compression) for compression in (None, "lzw", "deflate", "packbits", "zstd")]
    whole += [tiff(deep.astype(np.float32) / 65535, compression="deflate", predictor=3), tiff(deep, tile=(32, 32))]
    whole += [encoded(small, "JPEG2000", no_jp2=bare, tile_size=(64, 64)) for bare in (False, True)]
    whole += [make(small, small.size) for make in MAKERS.values()]
    first, ends = int.from_bytes(os.urandom(6)), time.monotonic() + SECONDS

    def seeds() -> Iterator[range]:
        start = first
        while time.monotonic() < ends:
            yield range(start, start + SHARD)
            start += SHARD

    found: Counter[str] = sum(pool.run(Fuzz(tuple(whole)), seeds(), 2), Counter())
    print(f"{found.total()} copies from seed {first}: {dict(found)}")
    assert set(found) <= {"picture", "truncated", "unreadable", "unsupported", "too_large", "empty"}
    assert len(found) >= 4
