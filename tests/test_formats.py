"""Image formats, beside those of test_images.py: what is read, with the right pixels, and what is refused."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules.formats import jpeg_xl_size, open_image
from datamodules.images import ImageError, image_size, no_images, read_image
from datamodules.pixel_budget import LARGE, LIMIT
from retrieval.cli import main
from retrieval.query import Example, encode_queries
from tests.conftest import REPOSITORY, draw_digit, draw_photo
from tests.small_encoder import SmallEncoder

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T])  # (3, 8, 8)


def save_tiff(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)


def write_rle4(path, rows):
    """A BMP of 6×2 pixels, whose rows are given as they are compressed."""
    palette = b"".join(bytes((17 * i // 2, 17 * i, 255 - 17 * i, 0)) for i in range(16))
    body = b"\0\0".join(rows) + b"\0\1"
    start = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 6, 2, 1, 4, 2, len(body), 0, 0, 16, 0)
    path.write_bytes(head + info + palette + body)


@pytest.mark.parametrize("name", ["a.pgm", "a.ppm", "a.pnm", "a.jp2", "a.avif", "a.heic", "a.jxl"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_same_in_every_format(tmp_path, name, channels):
    picture = draw_photo(1, 0).convert("L" if name == "a.pgm" else "RGB")
    register_plug_ins()
    picture.save(tmp_path / name, **({} if name.endswith("m") else {"quality": 95}))
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).astype(int)
    found = np.asarray(read_image(tmp_path / name, channels)).astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).mean() < 4
    assert image_size((tmp_path / name).read_bytes()) == picture.size


def register_plug_ins():
    """Register the plug-ins, so that Pillow can also write their formats."""
    import pillow_heif
    import pillow_jxl  # noqa: F401

    pillow_heif.register_heif_opener()


@pytest.mark.parametrize("name", ["a.heic", "a.avif", "a.tif", "a.webp", "a.jpg"])
def test_a_turned_photograph_is_upright_in_every_format(tmp_path, name):
    register_plug_ins()
    stored = Image.new("RGB", (64, 32))
    stored.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the left side comes to the top
    stored.save(tmp_path / name, exif=exif.tobytes())
    image = read_image(tmp_path / name, 3)
    assert image.size == image_size((tmp_path / name).read_bytes()) == (32, 64)
    assert image.getpixel((16, 8))[0] > 200
    assert image.getpixel((16, 56))[0] < 50


def test_of_jpeg_xl_the_formats_own_orientation_counts(tmp_path):
    register_plug_ins()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = draw_photo(0, 0, (64, 32))
    picture.save(tmp_path / "a.jxl", exif=exif.tobytes())  # the plug-in leaves the format's own at upright
    assert read_image(tmp_path / "a.jxl", 3).size == (64, 32)
    picture.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as photograph:
        photograph.save(tmp_path / "b.jxl", lossless_jpeg=True)  # the JPEG's own data, that are to be turned
    assert read_image(tmp_path / "b.jxl", 3).size == (32, 64)
    assert image_size((tmp_path / "b.jxl").read_bytes()) == (32, 64)


@pytest.mark.parametrize("size", [(8, 8), (256, 64), (300, 200), (64, 36), (40, 50), (1000, 1), (3, 600)])
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size):
    register_plug_ins()
    for container in (False, True):
        file = io.BytesIO()
        Image.new("L", size).save(file, format="JXL", use_container=container)
        assert jpeg_xl_size(file.getvalue()) == size


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ink", ["rgb", "separated"])
@pytest.mark.parametrize("planes", [False, True])
def test_a_tiff_has_the_right_pixels_or_is_refused(tmp_path, compression, bits, order, ink, planes):
    colours = COLOURS if ink == "rgb" else np.concatenate([65535 - COLOURS, np.zeros_like(COLOURS[:1])])
    stored = colours if bits == 16 else (colours >> 8).astype(np.uint8)
    save_tiff(
        tmp_path / "a.tif",
        stored if planes else np.ascontiguousarray(stored.transpose(1, 2, 0)),
        photometric=ink,
        planarconfig="separate" if planes else "contig",
        byteorder=order,
        compression=compression,
    )
    if planes and bits == 16 and compression is None:
        with pytest.raises(ImageError, match="a plane for each colour and 16 bits, which is not read; save it as PNG"):
            read_image(tmp_path / "a.tif", 3)
        return
    found = np.asarray(read_image(tmp_path / "a.tif", 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(found.astype(int), COLOURS >> 8, atol=2)


@pytest.mark.parametrize(
    ("pixels", "options", "why"),
    [
        (RAMP.astype(np.uint32) * 65537, {}, "pixels of 32 bits, which have no agreed white"),
        (RAMP.astype(np.int32), {}, "pixels of 32 bits, which have no agreed white"),
        ((RAMP >> 8).astype(np.uint32), {}, "pixels of 32 bits, which have no agreed white; save it as PNG"),
        (RAMP.view(np.int16), {}, "signed pixels of 16 bits"),
        ((RAMP >> 8).astype(np.uint8).view(np.int8), {}, "signed pixels of 8 bits"),
        (RAMP.astype(np.float32), {}, "floating-point pixels have no agreed white"),
        (RAMP.astype(np.float64), {}, r"TIFF file \(64 bits a pixel, compression raw, photometric interpretation 1\)"),
        (RAMP, {"photometric": "miniswhite"}, "16 bits a pixel in this form"),
        (COLOURS.astype(np.uint32), {"photometric": "rgb", "planarconfig": "separate"}, r"TIFF file \(32 \+ 32 \+ 32"),
        (RAMP, {"subfiletype": 1}, "begins with a preview, as a camera's raw file does"),
        (
            (COLOURS[:2] >> 8).astype(np.uint8),
            {"photometric": "minisblack", "planarconfig": "separate", "extrasamples": [2], "compression": "zlib"},
            "a plane for grey and one for transparency",
        ),
    ],
)
def test_a_tiff_without_agreed_pixels_is_refused(tmp_path, pixels, options, why):
    save_tiff(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ImageError, match=why) as caught:
        read_image(tmp_path / "a.tif", 1)
    assert str(caught.value).startswith(f"{tmp_path / 'a.tif'}: ")


@pytest.mark.parametrize(("number", "name"), [(65123, "number 65123"), (34925, "lzma"), (50001, "webp")])
def test_a_compression_that_is_not_read_is_named(tmp_path, number, name):
    save_tiff(tmp_path / "a.tif", RAMP)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    tag = data.index(struct.pack("<HHI", 259, 3, 1))
    struct.pack_into("<H", data, tag + 8, number)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageError, match=rf"a TIFF file \(16 bits a pixel, compression {name}, .*that is not read"):
        read_image(tmp_path / "a.tif", 1)


def test_a_bmp_of_4_bits_that_pillow_misreads_is_refused(tmp_path):
    write_rle4(tmp_path / "a.bmp", [bytes([0, 5, 0x12, 0x34, 0x50, 0, 1, 0x60]), bytes([6, 0x34])])
    with pytest.raises(ImageError, match="RLE4 compression, which is not read"):
        read_image(tmp_path / "a.bmp", 3)


@pytest.mark.parametrize(
    ("begin", "why"),
    [
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"%PDF-1.7", "a document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\x89PNG\r\n\x1a\n", "a PNG file that is damaged"),
        (b"\xff\xd8\xff\xe0", "a JPEG file that is damaged"),
    ],
)
def test_other_formats_are_named(tmp_path, begin, why):
    (tmp_path / "a.jpg").write_bytes(begin + bytes(40))
    with pytest.raises(ImageError, match=why):
        read_image(tmp_path / "a.jpg", 1)


def test_what_the_extra_would_read_says_so(tmp_path, photos):
    """In a process in which the plug-ins are not installed."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    script = """
import importlib.util, sys
from pathlib import Path
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.startswith("pillow_") else found(name, package)
from datamodules.images import ImageError, find_images, no_images, read_image
folder = Path(sys.argv[1])
assert find_images(folder) == []
print(no_images(folder))
try:
    read_image(folder / "b" / "photo.heic", 3)
except ImageError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    folder, file = done.stdout.splitlines()
    install = 'pip install ".[formats]" in the clone'
    assert folder.endswith(f"; passed over 1 .heic files, which are read with {install} (b/photo.heic)")
    assert file == f"{tmp_path / 'a' / 'b' / 'photo.heic'}: HEIC images are read with {install}"


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / "1.psd").touch()
    assert "; passed over 1 .psd files, which are not read as images (1.psd)" in str(no_images(tmp_path))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A JPEG and a PNG of 49 megapixels, blue below and red above, that are to be turned by 90° clockwise."""
    folder = tmp_path_factory.mktemp("large")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (8000, 6125), "blue")
    image.paste("red", (0, 0, 4000, 6125))
    image.save(folder / "a.jpg", exif=exif)
    image.putalpha(255)
    image.save(folder / "a.png", exif=exif, compress_level=1)
    return folder


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_large_image_is_reduced_and_keeps_its_size_in_words(large, name):
    assert LARGE < 8000 * 6125
    image = read_image(large / name, 3)
    assert image.size == (3063, 4000)
    assert np.abs(np.subtract(image.getpixel((1500, 100)), (255, 0, 0))).max() < 4
    assert np.abs(np.subtract(image.getpixel((1500, 3900)), (0, 0, 255))).max() < 4
    assert image_size((large / name).read_bytes()) == (6125, 8000)
    assert read_image(large / name, 1, all_pixels=True).size == (6125, 8000)


@pytest.mark.slow
def test_many_threads_decode_large_images_in_the_memory_of_one(large):
    script = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from datamodules.images import read_image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: read_image(Path(sys.argv[1]), 3).resize((100, 100)), range(4)))
print(peak() - before)
"""
    command = [sys.executable, "-c", script, str(large / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert int(done.stdout) < 2 * 4 * 49  # MB; 4 bytes a pixel, and all that comes after


def test_the_limit_is_set_in_the_environment(tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    draw_digit(1, 1, 200).save(tmp_path / "images" / "a.png")
    monkeypatch.setenv(LIMIT, "0.01")
    with pytest.raises(ImageError, match=r"200 × 200 pixels are 0\.04 megapixels, more than the 0\.01 "):
        read_image(tmp_path / "images" / "a.png", 1)
    monkeypatch.setenv(LIMIT, "1")
    assert read_image(tmp_path / "images" / "a.png", 1).size == (200, 200)
    monkeypatch.setenv(LIMIT, "many")
    assert main(["index", str(tmp_path / "images"), "--encoder", "digits"]) == 1
    assert f"error: {LIMIT} must be a number of megapixels, such as 256, got many" in capsys.readouterr().err


def test_pillows_warnings_reach_nobody(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a title"
    draw_digit(1, 1).save(tmp_path / "a.jpg", exif=exif.tobytes()[:-12])
    script = "import sys; from pathlib import Path; from datamodules.images import *; read_image(Path(sys.argv[1]), 1)"
    command = [sys.executable, "-W", "default", "-c", script, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libtiff may be inside of Pillow")
def test_what_libtiff_says_reaches_nobody_but_by_us(tmp_path, capfd):
    path = tmp_path / "a.tif"
    draw_digit(1, 1, 64).save(path, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    data[40:300] = b"\xff" * 260
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.tif: "):
        read_image(path, 1)
    assert capfd.readouterr() == ("", "")


def test_a_format_that_pillow_knows_and_we_do_not_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="TGA")
    with pytest.raises(ImageError, match="not an image of a format that is read"):
        read_image(tmp_path / "a.png", 3)
    with pytest.raises(ValueError, match="empty file"):
        open_image(b"")


def test_a_region_of_a_large_image_is_cut_out_of_all_its_pixels(large):
    lower, upper = Example(large / "a.jpg", (0, 4100, 6125, 8000)), Example(large / "a.jpg", (0, 0, 6125, 3900))
    (blue, red), _ = encode_queries([lower, upper], SmallEncoder())
    assert blue.argmax() // 16 == 2
    assert red.argmax() // 16 == 0
