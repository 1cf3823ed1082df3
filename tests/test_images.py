import io
import struct

import numpy as np
import pytest
from PIL import Image

from datamodules.images import (
    ImageError,
    convert_image,
    find_images,
    image_size,
    list_files,
    natural_sorted,
    passed_over,
    read_image,
    to_pixels,
)
from tests.conftest import draw_digit

COLOUR = (200, 100, 50)


def save_gradient(path, mode, **options):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    image = Image.fromarray(ramp)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(ramp.astype(np.int32) * 257)
    else:
        image = image.convert(mode)
    image.save(path, **options)
    return ramp


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "L"),
        ("a.png", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.png", "I;16"),
        ("a.tiff", "I;16"),
        ("a.pgm", "I"),
        ("a.tif", "CMYK"),
        ("a.bmp", "L"),
        ("a.gif", "P"),
        ("A.PNG", "L"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_picture_in_every_lossless_form_has_the_same_pixels(tmp_path, name, mode, channels):
    ramp = save_gradient(tmp_path / name, mode)
    pixels = to_pixels(read_image(tmp_path / name, channels), 8)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(ramp, pixels.shape), atol=1)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_the_same_picture_in_lossy_forms_has_nearly_the_same_pixels(tmp_path, name, mode):
    if (name, mode) == ("a.webp", "CMYK"):
        pytest.skip("WebP has no CMYK")
    ramp = save_gradient(tmp_path / name, mode, quality=100)
    np.testing.assert_allclose(to_pixels(read_image(tmp_path / name, 1), 8)[0].astype(int), ramp, atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = draw_digit(2, 0).resize((20, 12))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png", 1)), np.asarray(upright))
    assert image_size((tmp_path / "a.png").read_bytes()) == upright.size
    stored.resize((40 * stored.width, 40 * stored.height)).save(tmp_path / "large.jpg", exif=exif)
    assert read_image(tmp_path / "large.jpg", 1, side=300).size == (400, 240)  # half of its 800 pixels
    assert image_size((tmp_path / "large.jpg").read_bytes()) == (800, 480)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_data_do_not_keep_an_image_from_being_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("L", (20, 12), 200).convert("RGB").save(path, exif=b"Exif\0\0no TIFF header", dpi=(72, 72))
    assert read_image(path, 1).size == (20, 12)
    assert image_size(path.read_bytes()) == (20, 12)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_tag_of_an_odd_type_does_not_keep_an_image_from_being_turned(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    tags = struct.pack("<HHHIIHHI4s", 2, 0x0112, 3, 1, 6, 0x0128, 2, 2, b"2\0\0\0")  # the resolution's unit as a text
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags + bytes(4)
    Image.new("L", (20, 12), 200).convert("RGB").save(path, exif=exif)
    image = read_image(path, 1)
    assert image.size == image_size(path.read_bytes()) == (12, 20)
    assert convert_image(image, 1).size == (12, 20)  # and not turned again


def test_an_orientation_that_there_is_not_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("L", (20, 12), 200).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 1).size == image_size((tmp_path / "a.jpg").read_bytes()) == (20, 12)


def test_colour_is_kept_or_turned_to_luma(tmp_path):
    Image.new("RGB", (4, 4), COLOUR).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 3).getpixel((0, 0)) == COLOUR
    assert read_image(tmp_path / "a.png", 1).getpixel((0, 0)) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_lab_is_read_as_the_colours_that_it_means(tmp_path):
    Image.new("RGB", (4, 4), COLOUR).convert("LAB").save(tmp_path / "a.tif")
    for channels, expected in ((3, COLOUR), (1, round(0.299 * 200 + 0.587 * 100 + 0.114 * 50))):
        pixel = read_image(tmp_path / "a.tif", channels).getpixel((0, 0))
        np.testing.assert_allclose(pixel, expected, atol=3)


def test_a_white_drawing_on_nothing_is_seen_before_black(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((250, 250, 250, 255), (2, 2, 4, 6))
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1).getextrema() == (0, 250)
    image.paste((0, 0, 0, 255), (4, 2, 6, 6))
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1).getpixel((0, 0)) == 255


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1).getpixel((0, 0)) == 255


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", 1).getpixel((0, 0)) == 10


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = to_pixels(Image.fromarray(stripes), 8)
    assert abs(small.astype(int) - 127).max() < 12


def write_truncated(path):
    draw_digit(0, 0, 100).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def write_bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("not a picture"), "not an image of a format that is read"),
        (write_truncated, "truncated"),
        (write_bomb, "20000 × 20000 pixels are 400 megapixels, more than the 256 .* DIGITDOODLE_MAX_MEGAPIXELS"),
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: Image.new("F", (4, 4)).save(path, format="TIFF"), "floating-point"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, write, reason):
    path = tmp_path / "a.png"
    write(path)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path, 1)
    assert str(caught.value).startswith(str(path))


def test_images_are_found_in_natural_order_without_hidden_files(tmp_path):
    names = [
        "10.png",
        "2.jpg",
        "1.JPEG",
        "sub/3.bmp",
        ".hidden.png",
        ".ipynb_checkpoints/1.png",
        "notes.txt",
        "lost+found/4.png",
        "__MACOSX/5.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["1.JPEG", "2.jpg", "10.png", "sub/3.bmp"]


def test_natural_order():
    assert natural_sorted(["b", "10", "1", "a2", "A10", "2", "a1", "01"]) == [
        "01",
        "1",
        "2",
        "10",
        "a1",
        "a2",
        "A10",
        "b",
    ]


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "real").mkdir()
    draw_digit(1, 1).save(tmp_path / "a.jfif", format="JPEG")
    draw_digit(1, 1).save(tmp_path / "real" / "b.JPE", format="JPEG")
    (tmp_path / "sub" / "link").symlink_to(tmp_path / "real")
    for name in ("1.psd", "2.psd", "sub/3.PSD", "sub/10.psd", "notes.txt", "README", ".hidden", "Thumbs.db"):
        (tmp_path / name).touch()
    images, passed = list_files(tmp_path)
    assert [path.name for path in images] == ["a.jfif", "b.JPE"]
    assert read_image(images[0], 1).size == (20, 20)
    assert passed_over(tmp_path, passed) == (
        f"{tmp_path}: passed over 4 .psd files, which are not read as images (1.psd, 2.psd, sub/3.PSD, …); "
        "1 .txt files, which are not read as images (notes.txt); 1 files without an extension (README); "
        "1 links to folders, which are not followed (sub/link)"
    )
    assert passed_over(tmp_path, []) is None


def test_a_png_that_says_behind_its_pixels_how_it_lies_has_the_size_that_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.new("L", (30, 20)).save(stored, "PNG", exif=exif)
    data = stored.getvalue()
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, end = data[start : start + length], data.index(b"IEND") - 4
    moved = data[:start] + data[start + length : end] + chunk + data[end:]
    path = tmp_path / "a.png"
    path.write_bytes(moved)
    assert image_size(moved) == read_image(path, 1).size == (20, 30)
