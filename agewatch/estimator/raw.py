"""Camera RAW in the form of a TIFF (DNG, CR2, NEF, ARW): the preview that its camera, or a converter, put into it.

LibRaw finds the largest preview and says how the camera was held; developing the RAW itself is left to others.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
import tifffile

from agewatch.errors import ImageError
from agewatch.estimator.pixels import ON_ITS_SIDE

FULL_SIDE = 1280
"""A preview whose longer side has so many pixels is as good as a full-size one: faces are looked for on fewer."""
_NEARLY = 0.9  # of the RAW's own longer side: cameras crop a margin
_CFA, _LINEAR = (
    32803,
    34892,
)  # PhotometricInterpretation of samples behind a colour filter, and of what was made of them
_MAKERS = (34713, 32767)  # Compression of Nikon, of Sony
_DNG_VERSION, _DNG_PRIVATE = 50706, 50740  # Sony keeps its key in the second
_CR2 = b"CR"
_JPEG_START, _JPEG_LENGTH, _ORIENTATION = 513, 514, 274
_BY_FLIP = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}  # LibRaw's flip -> EXIF's orientation


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview: the bytes of a JPEG or samples, how the RAW is stored, as in EXIF, and the RAW's own size in pixels.

    `orientation` is None where the RAW says nothing: then the preview's own EXIF may.
    """

    picture: bytes | npt.NDArray[np.uint8]
    orientation: int | None
    whole: tuple[int, int]

    def turn_of(self, size: tuple[int, int]) -> int | None:
        """How a preview of a size, in pixels, is stored. Raises ImageError where it is only a thumbnail of the RAW.

        It lies as the RAW does, and what its own EXIF says of that is a copy; but some cameras store it upright, which
        its shape tells where the RAW lies on its side.
        """
        if max(size) < min(FULL_SIDE, _NEARLY * max(self.whole)):
            raise _no_preview()
        is_upright = (size[0] < size[1]) != (self.whole[0] < self.whole[1])
        return 1 if is_upright and self.orientation in ON_ITS_SIDE else self.orientation


def pages_of(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """A TIFF's directories and those within them."""
    pages = [page for page in file.pages or () if isinstance(page, tifffile.TiffPage)]
    return pages + [
        inner for page in pages if page.subifds for inner in page.pages or () if isinstance(inner, tifffile.TiffPage)
    ]


def is_raw(file: tifffile.TiffFile, data: bytes) -> bool:
    """Tell whether a TIFF is a camera's RAW, by its tags: suffixes may say anything."""
    assert file.pages is not None  # it was just opened
    first = file.pages.first
    if data[8:10] == _CR2 or _DNG_VERSION in first.tags or _DNG_PRIVATE in first.tags:
        return True
    pages = pages_of(file) if first.subifds else [first]
    return any(page.photometric in (_CFA, _LINEAR) or page.compression in _MAKERS for page in pages)


def read(file: tifffile.TiffFile, data: bytes) -> Preview:
    """Take the largest preview out of a RAW.

    Raises ImageError with code `truncated` where data are missing, `unsupported` where no preview is of full size or
    LibRaw is not there, `unreadable` where LibRaw can't open the file.
    """
    if _is_cut(file, data):
        raise ImageError("truncated", "The camera RAW's data end early.")
    try:
        import rawpy  # here, as few archives hold RAW
    except ImportError as error:
        raise ImageError("unsupported", "Camera RAW is not read here: the package 'rawpy' is not installed.") from error
    try:
        with rawpy.imread(BytesIO(data)) as opened:
            sizes = opened.sizes
            thumbnail = opened.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
        raise _no_preview() from error
    except rawpy.LibRawFileUnsupportedError as error:
        raise ImageError("unsupported", "Camera RAW of this kind is not read: LibRaw does not know it.") from error
    except rawpy.LibRawError as error:
        raise ImageError("unreadable", f"The camera RAW can't be opened ({type(error).__name__}).") from error
    assert file.pages is not None
    is_told = _ORIENTATION in file.pages.first.tags or sizes.flip != 0
    orientation = _BY_FLIP.get(sizes.flip, 1) if is_told else None
    return Preview(thumbnail.data, orientation, (sizes.raw_width, sizes.raw_height))


def _is_cut(file: tifffile.TiffFile, data: bytes) -> bool:
    """Tell whether a picture of the file lies beyond its end."""
    ends = [0]
    for page in pages_of(file):
        ends += [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        jpeg = [page.tags.valueof(tag) for tag in (_JPEG_START, _JPEG_LENGTH)]
        ends += [sum(jpeg)] if all(isinstance(value, int) for value in jpeg) else []
    return max(ends) > len(data)


def _no_preview() -> ImageError:
    return ImageError("unsupported", "The camera RAW holds no preview of full size, and RAW itself is not developed.")
