"""A small real archive for the demo: public-domain pictures that scikit-image carries, and some broken files."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image

from agewatch.errors import UsageError

_PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "hubble_deep_field.jpg")
_ORIENTATION, _TURNED_LEFT = 0x0112, 6


def build_archive(folder: Path) -> Path:
    """Write the demo archive below `folder` and return its path; files that are there already stay untouched.

    Raises UsageError where scikit-image is not installed, or the folder of the archive holds anything else.
    """
    package = find_spec("skimage")  # its pictures are wanted, not its code
    if package is None or package.origin is None:
        raise UsageError("The demo's pictures come with scikit-image: pip install 'agewatch[demo]'.")
    source = Path(package.origin).parent / "data"
    astronaut = Image.open(source / "astronaut.png").convert("RGB")
    whole = _jpeg(astronaut)
    turned = Image.Exif()  # the tag that says that the picture is stored on its side
    turned[_ORIENTATION] = _TURNED_LEFT
    files = {f"pictures/{name}": (source / name).read_bytes() for name in _PICTURES}
    files |= {
        "pictures/astronaut-turned.jpg": _jpeg(astronaut.transpose(Image.Transpose.ROTATE_90), exif=turned),
        "damaged/torn.jpg": whole[: len(whole) // 2],
        "damaged/empty.jpg": b"",
        "damaged/no-picture.jpg": b"This is a text that somebody named .jpg.\n",
        "readme.txt": b"Not a picture; ignored.\n",
    }
    archive = folder / "demo-archive"
    there = {path.relative_to(archive).as_posix() for path in archive.rglob("*") if not path.is_dir()}
    if others := sorted(there - files.keys()):
        raise UsageError(f"The demo's folder {archive} holds other files, such as {others[0]}: move them elsewhere.")
    for name, content in files.items():
        path = archive / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return archive


def _jpeg(image: Image.Image, **options: Image.Exif) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()
