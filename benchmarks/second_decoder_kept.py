"""Differences from the second decoder that were looked into and are kept: why, and which of Pillow's and pillow-heif's
test pictures show them.
"""

_BY_REASON = {
    "The second leaves out HEIF's alpha; here it is laid on white.": (
        "LA_8__128x128.heif", "LA_8__29x100.heif", "RGBA_10__128x128.heif", "RGBA_10__29x100.heif",
        "RGBA_12__128x128.heif", "RGBA_12__29x100.heif", "RGBA_8__128x128.heif", "RGBA_8__29x100.heif",
        "transparency.avif",
    ),
    "Damaged on purpose: the main picture is called a thumbnail of another, and libheif hides thumbnails.": (
        "invalid_id.heic",
    ),
    "The second takes 10 bits of limited range for full range: too pale.": ("guitar_cw90.hif",),
    "Debian's policy for the second allows 16,000 pixels of height.": ("200MP.heic",),
    "A byte is missing of the second picture; the main one is whole.": ("truncated.heic",),
    "The second leaves out an AVIF's ICC profile.": ("xmp_tags_orientation.avif",),
    "EXIF says nothing of a turn and XMP does: it is followed, as by Adobe's programs; the second reads EXIF alone.": (
        "xmp_tags_orientation.png", "xmp_tags_orientation_exiftool.png",
    ),
    "The second shows the first frame without the canvas that it lies on.": (
        "dispose_bgnd_transparency.gif", "first_frame_transparency.gif",
    ),
    "Values of a measurement from -3 to 3, which no tag explains.": ("10ct_32bit_128.tiff",),
    "Signed samples of 0 to 65535, scaled by what they reach; the second scales by all 32 bits.": (
        "16_bit_binary_pgm.tiff",
    ),
    "Signed samples of 0 and 32767, black and white; to the second 0 is grey.": ("16bit.s.tif",),
    "The second takes the colours of old-style JPEG for others: green and pink.": (
        "old-style-jpeg-compression.tif", "old-style-jpeg-compression-no-samplesperpixel.tif",
    ),
    "White is zero: the second shows a negative of 2 and 4 bits. libvips agrees with agewatch.": (
        "hopper2I.tif", "hopper2IR.tif", "hopper4I.tif", "hopper4IR.tif",
    ),
    "The second shows a white square of CMYK in JPEG. libvips agrees with agewatch.": ("tiff_tiled_cmyk_jpeg.tif",),
    "Damaged on purpose: 39 strips are told where there are 3; the second makes black of it.": (
        "tiff_overflow_rows_per_strip.tif",
    ),
    "Damaged on purpose: the type of a tag is wrong, and it is unknown how the planes lie.": (
        "tiff_tiled_jpeg_oob_read.tif",
    ),
    "Cut behind its headers: the second makes grey of it.": ("ultrahdr.jpg",),
    "Damaged on purpose, in what pixels do not need.": ("badfilesize.bmp", "badplanes.bmp", "mmap_error.bmp"),
    "Damaged on purpose: there is no right picture.": ("badheadersize.bmp", "badrle.bmp", "pal8badindex.bmp"),
    "A header of OS/2 of 16 bytes, which no camera or scanner is known to write.": ("pal8os2v2-16.bmp",),
    "The second shows noise where OS/2's palette is.": ("pal8os2v2.bmp",),
    "The second scales colours of 2, 3 and 1 bits short of white.": ("rgb16-231.bmp",),
    "The second takes a spare byte for alpha.": ("rgb32fakealpha.bmp",),
    "Its alpha, of 4 bits, is laid on white; the second leaves it out.": ("rgba16-4444.bmp",),
    "BI_ALPHABITFIELDS, which the second does not know.": ("rgba32abf.bmp",),
}  # fmt: skip

KEPT = {name: reason for reason, names in _BY_REASON.items() for name in names}
"""The reason by the picture's file name."""
