"""Formats of image files: which are read, with which plug-in, and why another one is not."""

import contextlib
import ctypes
import importlib
import io
import re
import warnings
from importlib.util import find_spec
from typing import NamedTuple

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, _imaging

from datamodules.errors import last_line


class PlugIn(NamedTuple):
    """A format that Pillow reads with another package, which the extra ``formats`` installs.

    Attributes:
        name: Of the format, as its users call it.
        key: Its name in Pillow, once the module is imported.
        module: What registers it.
        begins: What its files begin with.
        extensions: Of its files.
    """

    name: str
    key: str
    module: str
    begins: re.Pattern[bytes]
    extensions: frozenset[str]

    @property
    def installed(self) -> bool:
        """Whether the package is there; it is not imported before a file needs it."""
        return find_spec(self.module.partition(".")[0]) is not None


HEIC = PlugIn(
    "HEIC",
    "HEIF",
    "pillow_heif.HeifImagePlugin",
    re.compile(rb"(?s)....ftyp(?!.{0,64}avi[fs])(hei|hev|mif1|msf1)"),  # AVIF comes in the same container
    frozenset({".heic", ".heif", ".hif"}),
)
JPEG_XL = PlugIn("JPEG XL", "JXL", "pillow_jxl", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), frozenset({".jxl"}))
PLUG_INS = (HEIC, JPEG_XL)
INSTALL = 'pip install ".[formats]" in the clone'

# No other ones of Pillow's: they are rare, and an EPS would be run by Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".webp", ".tif", ".tiff"}
    | {".jp2", ".avif"}
).union(*(plug_in.extensions for plug_in in PLUG_INS if plug_in.installed))

OTHERS = {
    rb"(?s)....ftypcrx |FUJIFILMCCD-RAW|II(RO|RS|U\0)|(?s:II\*\0....CR)": "a camera's raw file",
    rb"8BPS": "a Photoshop file",
    rb"%PDF|%!PS": "a document",
    rb"\s*<(\?xml|svg|!DOCTYPE|html)": "an SVG drawing, or text",
    rb"v/1\x01|#\?RADIANCE|P[Ff]\n": "an image with floating-point pixels",
}

Image.MAX_IMAGE_PIXELS = None  # the limit is ours, in words of ours: `pixel_budget.room_for`
warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file, and what they are about is read all the same
# Nor do the lines that libtiff writes to stderr by itself name one, and Pillow raises an exception after an error.
with contextlib.suppress(OSError, AttributeError):  # where Pillow has libtiff inside, its functions have no names
    PILLOW = ctypes.CDLL(_imaging.__file__)
    PILLOW.TIFFSetErrorHandler(None)
    PILLOW.TIFFSetWarningHandler(None)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image file, without decoding its pixels; only JPEG XL's plug-in decodes them here.

    Raises:
        ValueError: It is of a kind that is not read, or not read rightly; the message says which.
    """
    formats = list(FORMATS)
    for plug_in in PLUG_INS:
        if plug_in.begins.match(data):
            if not plug_in.installed:
                raise ValueError(f"{plug_in.name} images are read with {INSTALL}")
            importlib.import_module(plug_in.module)
            formats = [plug_in.key]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: a compression that Pillow has no name for
        raise ValueError(why_unread(data)) from error
    fault = _misread(image)
    if fault is not None:
        raise ValueError(f"{fault}; save it as PNG, or as TIFF with 8 bits a colour")
    if image.format == JPEG_XL.key and not image.jpeg:  # type: ignore[attr-defined]
        image.info.pop("exif", None)  # the format's own orientation has been applied, and is the one that counts
    return image


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG XL image, from its header (ISO/IEC 18181-1, SizeHeader); None for another format.

    As it is stored: the plug-in would decode the image before it says.
    """
    if not JPEG_XL.begins.match(data):
        return None
    start = re.search(rb"(?s)^\xff\x0a|jxlc\xff\x0a|jxlp....\xff\x0a", data)
    if start is None:
        raise ValueError("cut off, or a damaged JPEG XL")
    bits = int.from_bytes(data[start.end() : start.end() + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * numerator // denominator, height


def passed_kind(suffix: str) -> str:
    """Why files with an extension are passed over."""
    if any(suffix in plug_in.extensions for plug_in in PLUG_INS):
        return f"which are read with {INSTALL}"
    return "which are not read as images"


def _misread(image: ImageFile.ImageFile) -> str | None:
    """What Pillow (up to 12.3 at least) would read as other pixels than the file has."""
    if image.format == "BMP" and image.info.get("compression") == 2:
        return "a BMP with RLE4 compression, which is not read"
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    bits = max(tags.get(ExifTags.Base.BitsPerSample, (1,)))
    if tags.get(ExifTags.Base.NewSubfileType, 0) & 1:
        return "a TIFF that begins with a preview, as a camera's raw file does, which is not read"
    kinds = tags.get(ExifTags.Base.SampleFormat, ())
    if bits == 32 and 3 not in kinds:  # 3: floating-point, which is refused for that
        return "a TIFF with pixels of 32 bits, which have no agreed white"
    if 2 in kinds:
        return f"a TIFF with signed pixels of {bits} bits, which have no agreed white"
    if (tags.get(ExifTags.Base.PhotometricInterpretation) == 0 and bits > 8) or bits == 12:
        return f"a TIFF with {bits} bits a pixel in this form, which is not read"
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2:
        if bits > 8 and image.info["compression"] == "raw":
            return f"a TIFF with a plane for each colour and {bits} bits, which is not read"
        if image.mode == "LA":
            return "a TIFF with a plane for grey and one for transparency, which is not read"
    return None


def why_unread(data: bytes) -> str:
    """Why a file is not read that Pillow can't open, or whose decoder gives a number for a reason."""
    if not data:
        return "empty file"
    for begins, what in OTHERS.items():
        if re.match(begins, data):
            return f"{what}, which is not read; save it as JPEG or PNG"
    for name in FORMATS:
        if name in Image.OPEN and (accept := Image.OPEN[name][1]) is not None and accept(data[:16]):
            about = f" ({_describe_tiff(data)})" if name == "TIFF" else ""
            return f"a {name} file{about} that is damaged, or of a kind that is not read"
    return f"not an image of a format that is read ({', '.join(FORMATS)}, {', '.join(p.name for p in PLUG_INS)})"


def _describe_tiff(data: bytes) -> str:
    """What kind of TIFF it is."""
    header = data[:16] if 43 in data[2:4] else data[:8]  # 43: BigTIFF
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(ExifTags.Base.BitsPerSample, (1,))
        compression = tags.get(ExifTags.Base.Compression, 1)
        colour = tags.get(ExifTags.Base.PhotometricInterpretation, "unknown")
    except Exception as error:  # Pillow raises nearly anything on a damaged directory
        return last_line(error)
    name = TiffImagePlugin.COMPRESSION_INFO.get(compression, f"number {compression}")
    return f"{' + '.join(map(str, bits))} bits a pixel, compression {name}, photometric interpretation {colour}"
