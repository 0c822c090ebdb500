"""Pictures for tests: a real face and what can be made of it."""

import io
from pathlib import Path
from typing import Any

import skimage
from PIL import Image

ASTRONAUT = Path(skimage.__file__).parent / "data" / "astronaut.png"
"""A real face, in the public domain (NASA)."""


def encoded(image: Image.Image, suffix: str = "PNG", **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def torn(data: bytes) -> bytes:
    """Return the first half of a file."""
    return data[: len(data) // 2]


def seven_faces() -> dict[str, bytes]:
    """Make seven different good pictures with one face each, by file name."""
    astronaut = Image.open(ASTRONAUT).convert("RGB")
    portrait = astronaut.crop((130, 20, 330, 240))
    return {
        "whole.png": encoded(astronaut),
        "whole.jpg": encoded(astronaut, "JPEG", quality=80),
        "portrait.png": encoded(portrait),
        "small.jpg": encoded(portrait.resize((100, 110)), "JPEG"),
        "large.webp": encoded(portrait.resize((600, 660)), "WEBP"),
        "mirrored.png": encoded(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "tilted.jpg": encoded(astronaut.rotate(12), "JPEG"),
    }
