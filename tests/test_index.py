"""The life of an index: what is read again, what is kept, and what survives."""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import Timeout
from PIL import Image

from datamodules.errors import UserError
from retrieval.cli import main
from retrieval.index import ImageIndex
from retrieval.match_distance import match_distance
from retrieval.plots import plot_matches
from retrieval.query import Example, encode_queries
from retrieval.stores.location import INDEX_NAME
from retrieval.stores.sqlite import SQLiteStore
from tests.conftest import draw_photo
from tests.small_encoder import SmallEncoder, index_folder

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.small_encoder", "retrieval.stores.sqlite"])


def open_index(folder, **options):
    return ImageIndex.open(folder, SmallEncoder(**options))


def updated(folder):
    with open_index(folder) as index:
        update = index.update()
        return update.encoded, update.known, update.unchanged, update.removed


def content(folder):
    with SQLiteStore(folder / INDEX_NAME) as store:
        records, matrix = store.vectors()
        return records, matrix.copy()


@pytest.fixture
def many(tmp_path):
    """A folder of 100 tiny pictures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_unchanged_files_are_not_read_again(photos):
    assert updated(photos) == (12, 0, 0, 0)
    for path in photos.rglob("*.jpg"):
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)  # would be noticed if it were read
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert updated(photos) == (0, 0, 12, 0)


def test_only_what_is_new_or_has_changed_is_encoded(photos):
    updated(photos)
    draw_photo(0, 50).save(photos / "sky" / "new.jpg")
    draw_photo(0, 51).save(photos / "sky" / "1.jpg")
    assert updated(photos) == (2, 0, 11, 0)
    with open_index(photos) as index:
        index.update()
        (match,) = index.search(draw_photo(0, 50), k=1)
        assert match.path == photos / "sky" / "new.jpg"
        assert match.label == "sky"


def test_touched_moved_and_copied_files_keep_their_vectors_and_deleted_ones_go(photos):
    updated(photos)
    records, matrix = content(photos)
    os.utime(photos / "sky" / "0.jpg", (1, 1))
    (photos / "sky" / "1.jpg").rename(photos / "grass" / "moved.jpg")
    shutil.copy(photos / "sky" / "2.jpg", photos / "copy.jpg")
    (photos / "sand" / "3.jpg").unlink()
    assert updated(photos) == (0, 3, 9, 2)
    now, vectors = content(photos)
    names = [record.path for record in now]
    assert names == sorted(names)
    assert {"grass/moved.jpg", "copy.jpg"} <= set(names)
    assert not {"sky/1.jpg", "sand/3.jpg"} & set(names)
    moved, was = names.index("grass/moved.jpg"), [record.path for record in records].index("sky/1.jpg")
    np.testing.assert_array_equal(vectors[moved], matrix[was])
    assert (now[moved].label, now[moved].width, now[moved].height) == ("grass", 120, 90)
    assert now[names.index("copy.jpg")].label is None


def test_files_that_are_renamed_in_turn_keep_their_vectors(photos):
    for kind, name in enumerate(("sky", "grass", "sand")):
        for path in (photos / name).iterdir():
            path.rename(photos / f"{4 * kind + int(path.stem)}.jpg")
    updated(photos)
    records, matrix = content(photos)
    (photos / "0.jpg").unlink()
    for number in range(1, 12):
        (photos / f"{number}.jpg").rename(photos / f"{number - 1}.jpg")
    assert updated(photos) == (0, 11, 0, 1)
    now, vectors = content(photos)
    before = {record.path: row for row, record in enumerate(records)}
    for record, vector in zip(now, vectors, strict=True):
        number = int(record.path.removesuffix(".jpg"))
        np.testing.assert_array_equal(vector, matrix[before[f"{number + 1}.jpg"]])


def test_files_of_the_same_size_and_time_are_read_again_when_that_is_asked_for(photos):
    Image.new("RGB", (60, 60), "red").save(photos / "plain.bmp")
    updated(photos)
    status = (photos / "plain.bmp").stat()
    Image.new("RGB", (60, 60), "blue").save(photos / "plain.bmp")
    os.utime(photos / "plain.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert updated(photos) == (0, 0, 13, 0)
    with open_index(photos) as index:
        update = index.update(verify=True)
        assert (update.encoded, update.known, update.unchanged, update.removed) == (1, 12, 0, 0)
        assert index.search(Image.new("RGB", (60, 60), "blue"), k=1)[0].distance == 0


def test_files_that_cannot_be_read_are_left_out_and_reported_each_time(photos):
    (photos / "broken.jpg").write_bytes((photos / "sky" / "0.jpg").read_bytes()[:900])
    (photos / "empty.png").touch()
    (photos / "text.gif").write_text("no picture")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    os.mkfifo(photos / "pipe.png")
    Image.new("1", (20000, 20000)).save(photos / "bomb.png")
    (photos / "sky" / "round").symlink_to(photos, target_is_directory=True)
    for encoded in (12, 0):
        with open_index(photos) as index:
            update = index.update()
        assert update.encoded == encoded
        errors = "\n".join(sorted(update.errors))
        assert [line.split(": ")[0].removeprefix(f"{photos}/") for line in errors.splitlines()] == [
            "bomb.png",
            "broken.jpg",
            "empty.png",
            "loop.png",
            "pipe.png",
            "text.gif",
        ]
        for reason in (
            "empty file",
            "truncated",
            "20000 × 20000 pixels are 400 megapixels, more than the 256 that are read",
            "levels of symbolic links",
            "a pipe, not a file",
        ):
            assert reason in errors
    (photos / "empty.png").write_bytes((photos / "sky" / "0.jpg").read_bytes())
    assert updated(photos) == (0, 1, 12, 0)


def test_files_that_still_cannot_be_read_change_nothing(photos, monkeypatch):
    def state():
        with open_index(photos) as index:
            index.search(draw_photo(0, 0))  # makes the file of the vectors, if it is another revision's
            distance = index.store.match_distance()
        with contextlib.closing(sqlite3.connect(photos / INDEX_NAME)) as reader:
            (revision,) = reader.execute("SELECT value FROM header WHERE key = 'revision'").fetchone()
        return revision, distance, (photos / f"{INDEX_NAME}.vectors").stat().st_mtime_ns

    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "text.gif").write_text("no picture")
    updated(photos)
    with open_index(photos) as index:
        index.store.keep_match_distance(0.5)  # 12 images are too few for one, if it were drawn again
    before = state()
    monkeypatch.chdir(photos.parent)
    for folder in (photos, Path("photos")):
        with open_index(folder) as index:
            errors = sorted(index.update().errors)
        assert errors[0] == f"{folder / 'gone.jpg'}: no such file or directory"
        assert errors[1].startswith(f"{folder / 'text.gif'}: not an image of a format that is read")
        assert state() == before


def test_a_file_that_could_not_be_decoded_is_tried_again(photos, monkeypatch):
    Image.new("RGB", (2000, 1000)).save(photos / "large.png")
    monkeypatch.setenv("DIGITDOODLE_MAX_MEGAPIXELS", "1")
    with open_index(photos) as index:
        (error,) = index.update().errors
    assert error.startswith(
        f"{photos / 'large.png'}: 2000 × 1000 pixels are 2 megapixels, more than the 1 that are read"
    )
    monkeypatch.delenv("DIGITDOODLE_MAX_MEGAPIXELS")
    assert updated(photos) == (1, 0, 12, 0)


def test_an_error_that_an_index_of_before_has_kept_is_not_believed(photos):
    updated(photos)
    with SQLiteStore(photos / INDEX_NAME) as store:
        store.add([replace(store.records()["sky/0.jpg"], digest=None, width=0, height=0, error="sky/0.jpg: no")], {})
    with open_index(photos) as index:
        update = index.update()
        assert (update.encoded + update.known, update.unchanged, update.errors) == (1, 11, [])
        assert len(index.search(draw_photo(0, 0), k=50)) == 12


def test_an_empty_folder_is_a_clear_error_and_stays_empty(tmp_path):
    with pytest.raises(UserError, match="no images in this folder"):
        updated(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"has no index yet; create it with `python -m retrieval index"):
        open_index(tmp_path).search(draw_photo(0, 0))
    with pytest.raises(UserError, match="missing: no such folder"):
        updated(tmp_path / "missing")


def test_a_folder_without_images_does_not_empty_its_index(photos, tmp_path):
    for index in (None, tmp_path / "elsewhere.sqlite"):
        with ImageIndex.open(photos, SmallEncoder(), index) as made:
            made.update()
    unmounted = tmp_path / "unmounted"
    photos.rename(unmounted)
    photos.mkdir()
    (unmounted / INDEX_NAME).rename(photos / INDEX_NAME)
    for index in (None, tmp_path / "elsewhere.sqlite"):
        with ImageIndex.open(photos, SmallEncoder(), index) as kept:
            message = f"^{photos}: no images in this folder, 12 in its index .*: is its disk not mounted"
            with pytest.raises(UserError, match=message):
                kept.update()
            assert len(kept.search(draw_photo(0, 0), k=50)) == 12
    photos.rename(tmp_path / "other")
    unmounted.rename(photos)
    with ImageIndex.open(photos, SmallEncoder(), tmp_path / "elsewhere.sqlite") as index:
        assert vars(index.update()) == {"encoded": 0, "known": 0, "removed": 0, "unchanged": 12, "errors": []}


def test_an_update_that_was_killed_before_its_end_is_completed_by_the_next(photos, monkeypatch):
    for number in range(4, 30):
        draw_photo(0, number).save(photos / "sky" / f"{number}.jpg")
    updated(photos)
    with open_index(photos) as index:
        before = index.match_distance
    for path in (photos / "sky").iterdir():
        path.unlink()
    for number in range(30):
        draw_photo(number % 3, 100 + number).save(photos / "grass" / f"{100 + number}.jpg")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteStore, "compact", killed)
        with pytest.raises(KeyboardInterrupt):
            updated(photos)
    assert updated(photos) == (0, 0, 38, 0)
    with open_index(photos) as index:
        kept, anew = index.store.match_distance(), match_distance(index.store)
    assert kept == anew != before
    with contextlib.closing(sqlite3.connect(photos / INDEX_NAME)) as reader:
        assert reader.execute("SELECT count(*) FROM contents").fetchone() == (38,)


def test_that_images_are_too_few_for_a_distance_is_kept_as_well(photos, monkeypatch):
    updated(photos)
    monkeypatch.setattr("retrieval.update.match_distance", lambda store: pytest.fail("is drawn again"))
    assert updated(photos) == (0, 0, 12, 0)
    with open_index(photos) as index, pytest.raises(UserError, match="fewer than 20 different images"):
        index.search(photos / "sky" / "0.jpg", max_distance="auto")


def test_an_image_without_any_feature_is_like_its_kind_and_unlike_all_others(photos):
    class Rectified(SmallEncoder):
        def maps(self, pixels):
            return super().maps(pixels) - 0.01

    for name in ("black", "darkness"):
        Image.new("RGB", (40, 40 + len(name))).save(photos / f"{name}.png")
    for options in ({}, {"crops": True}):
        with ImageIndex.open(photos, Rectified(), photos / f"{len(options)}.sqlite") as index:
            index.update(**options)
            found = index.search(photos / "black.png", k=20)
            assert (found[0].path.name, found[0].distance) == ("darkness.png", 0)
            assert min(match.distance for match in found[1:]) > 1.4
            others = index.search(photos / "sky" / "0.jpg", k=20)
            assert {match.path.name for match in others[-2:]} == {"black.png", "darkness.png"}
            assert plot_matches(photos / "black.png", found, index.encoder).axes


def test_an_index_of_another_encoder_is_refused(photos):
    updated(photos)
    with pytest.raises(UserError, match=r"was made with encoder small, not other: query it with the same encoder"):
        open_index(photos, name="other")
    assert updated(photos) == (0, 0, 12, 0)


def test_the_index_can_stand_elsewhere(photos, tmp_path):
    with ImageIndex.open(photos, SmallEncoder(), tmp_path / "elsewhere.sqlite") as index:
        index.update()
    assert not list(photos.glob(".*"))
    with ImageIndex.open(photos, SmallEncoder(), tmp_path / "elsewhere.sqlite") as index:
        assert len(index.search(photos / "sky" / "0.jpg")) == 4


def test_search_leaves_the_query_and_its_copies_out_unless_asked_for(photos):
    shutil.copy(photos / "sky" / "0.jpg", photos / "copy.jpg")
    updated(photos)
    with open_index(photos) as index:
        query = photos / "sky" / "0.jpg"
        found = index.search(query, k=20)
        assert len(found) == 11
        assert not {query, photos / "copy.jpg"} & {match.path for match in found}
        found = index.search(query, k=20, include_self=True)
        assert [(match.path, match.distance) for match in found[:2]] == [(photos / "copy.jpg", 0), (query, 0)]
        assert len(found) == 13
        assert [match.label for match in found[2:5]] == ["sky"] * 3
        assert {match.label for match in index.search(query, k=20, label="sand")} == {"sand"}
        with pytest.raises(UserError, match="k must be at least 1, got 0"):
            index.search(query, k=0)
        with pytest.raises(UserError, match="no image has the label Sand: there are grass, sand, sky"):
            index.search(query, label="Sand")


def test_labels_are_listed_only_for_who_names_one_that_is_none(photos, monkeypatch):
    updated(photos)
    with open_index(photos) as index:
        monkeypatch.setattr(SQLiteStore, "labels", lambda store: pytest.fail("all are read"))
        assert len(index.search(draw_photo(0, 0), label="sky")) == 4


def test_queries_are_read_and_encoded_a_batch_at_a_time(photos):
    class Counting(SmallEncoder):
        waiting, most = 0, 0

        def prepare(self, image):
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            return super().prepare(image)

        def encode(self, images):
            self.waiting -= len(images)
            return super().encode(images)

    encoder, paths = Counting(batch_size=4), sorted(photos.rglob("*.jpg"))
    together = [[Example(path), Example(paths[0], weight=-0.5)] for path in paths]
    vectors, contents = encode_queries([*paths, *together], encoder)
    assert encoder.most <= 4
    assert (len(vectors), [len(files) for files in contents]) == (24, [1] * 13 + [2] * 11)
    for query, vector in ((paths[7], vectors[7]), (together[7], vectors[19])):
        np.testing.assert_allclose(encode_queries([query], SmallEncoder())[0][0], vector, atol=1e-6)


def test_a_part_of_an_image_is_searched_with_alone(photos):
    updated(photos)
    sky, sand = (Image.open(photos / name) for name in ("sky/0.jpg", "sand/0.jpg"))
    sheet = Image.new("RGB", (sky.width + sand.width, sky.height))
    sheet.paste(sky, (0, 0))
    sheet.paste(sand, (sky.width, 0))
    sheet.save(photos.parent / "sheet.png")
    halves = {"sky": (0, 0, sky.width, sky.height), "sand": (sky.width, 0, *sheet.size)}
    with open_index(photos) as index:
        for label, region in halves.items():
            for image in (sheet, photos.parent / "sheet.png"):
                matches = index.search(Example(image, region), k=1)
                assert matches == index.search(sheet.crop(region), k=1)
                assert [(match.label, match.path.stem) for match in matches] == [(label, "0")]
        for region in ((0, 0, 0, 5), (5, 0, 4, 5), (-1, 0, 5, 5), (0, 0, *[side + 1 for side in sheet.size])):
            with pytest.raises(UserError, match=r"sheet.png: the region .* does not lie in the image of \d+ × \d+ pix"):
                index.search(Example(photos.parent / "sheet.png", region))


def test_several_images_are_one_query_like_some_and_unlike_others(photos):
    updated(photos)
    first, second, third = (photos / name for name in ("sky/0.jpg", "grass/0.jpg", "sand/0.jpg"))
    with open_index(photos) as index:
        vectors, contents = encode_queries([first, second], index.encoder)
        found = index.search([Example(first), Example(second)], k=20)
        assert not {first, second} & {match.path for match in found}  # both are left out
        middle = vectors.sum(axis=0, keepdims=True)
        (expected,) = index.store.search(middle / np.linalg.norm(middle), 1, [set.union(*contents)])
        assert str(found[0].path.relative_to(photos)) == expected[0].path
        assert found[0].distance == pytest.approx(expected[0].distance, abs=1e-5)
        unlike = index.search([Example(first), Example(third, weight=-1)], k=20)
        alone = index.search(first, k=20)

        def mean(matches, label):
            return np.mean([match.distance for match in matches if match.label == label])

        assert mean(unlike, "sand") > mean(alone, "sand")
        assert index.search([Example(first)]) == index.search(first)
        assert index.search(Example(first, weight=0.5), k=1)[0].distance == pytest.approx(alone[0].distance, abs=1e-5)
        with pytest.raises(UserError, match="the images cancel each other out"):
            index.search([Example(first), Example(first, weight=-1)])
        with pytest.raises(UserError, match="a query needs an image"):
            index.search([])
        assert index.search_many([]) == []


def test_many_queries_give_what_each_alone_gives(photos):
    updated(photos)
    with open_index(photos) as index:
        queries = sorted(photos.rglob("*.jpg"))
        assert index.search_many(queries, k=3) == [index.search(query, k=3) for query in queries]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"format": "PNG"}),
        ("RGB", {"format": "BMP"}),
        ("RGB", {"format": "TIFF"}),
        ("RGB", {"format": "WEBP", "lossless": True}),
        ("RGB", {"format": "JPEG", "quality": 95}),
        ("CMYK", {"format": "JPEG", "quality": 95}),
        ("CMYK", {"format": "TIFF"}),
        ("RGBA", {"format": "PNG"}),
        ("transparent", {"format": "PNG"}),
        ("P", {"format": "PNG"}),
        ("P", {"format": "GIF"}),
        ("L", {"format": "PNG"}),
        ("I;16", {"format": "PNG"}),
        ("I;16", {"format": "TIFF"}),
        ("EXIF", {"format": "JPEG", "quality": 95}),
    ],
)
def test_a_picture_finds_itself_whatever_the_form(photos, tmp_path, mode, options):
    grey = mode in ("L", "I;16")
    for kind, name in enumerate(("sky", "grass", "sand")):
        for seed in range(4):
            picture = draw_photo(kind, seed)
            (picture.convert("L") if grey else picture).save(photos / name / f"{seed}.png")
            (photos / name / f"{seed}.jpg").unlink()
    updated(photos)
    picture = Image.open(photos / "grass" / "2.png")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    elif mode == "EXIF":
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        options = {**options, "exif": Image.Exif()}
        options["exif"][0x0112] = 6  # to be turned right by 90 degrees
    elif mode == "transparent":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").save(
            photos / "grass" / "2.png"
        )
        updated(photos)
    elif mode == "P":
        picture = picture.quantize(256)
    else:
        picture = picture.convert(mode)
    query = tmp_path / "query"
    picture.save(query, **options)
    with open_index(photos) as index:
        found = index.search(query, k=3, include_self=True)
        expected = index.search(photos / "grass" / "2.png", k=2)
        assert found[0].path == photos / "grass" / "2.png"
        assert {match.path for match in found[1:]} == {match.path for match in expected}
        assert index.search(Image.open(query), k=3, include_self=True) == found
    figures = [plot_matches(picture, []) for picture in (query, Image.open(query))]
    np.testing.assert_array_equal(*[figure.axes[0].images[0].get_array() for figure in figures])


@pytest.mark.parametrize("name", ["ünï cødé 🙂.png", "a\nb.png", "%2e%00'\".png", os.fsdecode(b"\xff\xfe.png")])
def test_any_file_name_is_found_again(photos, name):
    folder = photos / f"class {name.removesuffix('.png')}"
    folder.mkdir()
    draw_photo(1, 99).save(folder / "x.png")
    shutil.move(folder / "x.png", folder / name)
    updated(photos)
    with open_index(photos) as index:
        (match,) = index.search(folder / name, k=1, include_self=True)
    assert (match.path, match.label, match.distance) == (folder / name, folder.name, 0)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_loses_nothing_that_was_written(many):
    started = time.perf_counter()
    index_folder(many)
    seconds = time.perf_counter() - started
    undisturbed, vectors = content(many)
    location = many / INDEX_NAME
    draw = random.Random(0)
    kills = 0
    while kills < 20:
        process = processes.Process(target=index_folder, args=(many, 0.002))
        process.start()
        deadline = time.monotonic() + draw.uniform(0, 3 * seconds + 0.1)
        acknowledged = {}
        while process.is_alive() and time.monotonic() < deadline:
            if location.exists():
                with SQLiteStore(location) as store:
                    acknowledged = store.records()
            time.sleep(0.005)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if location.exists() and acknowledged:
            with SQLiteStore(location) as store:
                records, matrix = store.vectors()
                assert acknowledged.items() <= store.records().items()
                places = {record.path: row for row, record in enumerate(undisturbed)}
                np.testing.assert_array_equal(matrix, vectors[[places[record.path] for record in records]])
        if process.exitcode == 0 or kills % 4 == 0:
            for path in many.glob(".*"):
                path.unlink()
    index_folder(many)
    again, matrix = content(many)
    assert again == undisturbed
    np.testing.assert_array_equal(matrix, vectors)


def test_two_updates_at_once_do_the_work_once_and_end_right(many):
    both = [processes.Process(target=index_folder, args=(many, 0.002)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(content(many)[0]) == 100
    assert updated(many) == (0, 0, 100, 0)


def test_a_query_during_an_update_answers_with_what_there_is(many):
    process = processes.Process(target=index_folder, args=(many, 0.05))
    process.start()
    while not (many / INDEX_NAME).exists():
        time.sleep(0.01)
    found = 0
    while process.is_alive() and not found:
        with open_index(many) as index:
            with pytest.raises(Timeout):
                index.update(wait=False)
            found = len(index.search(draw_photo(0, 0), k=300))
        time.sleep(0.01)
    assert 0 < found < 100
    process.kill()
    process.join()


def test_a_reader_that_is_open_sees_what_an_update_adds(photos):
    updated(photos)
    with open_index(photos) as index:
        assert len(index.search(draw_photo(0, 0), k=50)) == 12
        draw_photo(0, 77).save(photos / "new.png")
        thread = threading.Thread(target=updated, args=(photos,))
        thread.start()
        thread.join()
        assert len(index.search(draw_photo(0, 0), k=50)) == 13


def _peak_memory(folder, queue):
    index_folder(folder, batch_size=32)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    data = []
    for number in range(64):
        draw_photo(number % 3, number, (96, 96)).save(tmp_path / "image.png")
        data.append((tmp_path / "image.png").read_bytes())
    peaks = []
    for count in (1000, 10_000):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            # What follows the end of a PNG is no part of the picture, but makes it another file.
            (folder / f"{number}.png").write_bytes(data[number % 64] + number.to_bytes(4, "big"))
        queue = processes.Queue()
        process = processes.Process(target=_peak_memory, args=(folder, queue))
        process.start()
        peaks.append(queue.get(timeout=120))
        process.join()
    # 10,000 decoded pictures would be 276 MB; what grows is the list of the files' names.
    assert peaks[1] - peaks[0] < 30e6


def _as_nobody(folder, queue):
    """What a user who may not write to a folder sees."""
    os.setuid(65534)
    try:
        with open_index(folder) as index:
            update = index.update()
            queue.put((update.encoded, update.errors, len(index.search(draw_photo(0, 0), k=50))))
    except UserError as error:
        queue.put(str(error))


def _ask(folder, query, queue):
    """What `query` says to a user who may not write to the folder."""
    os.setuid(65534)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["query", str(query), "--database", str(folder), "-k", "50"])
    queue.put((status, out.getvalue(), err.getvalue()))


def _answer(folder, said, found):
    os.setuid(65534)
    with open_index(folder) as index:
        while said.get(timeout=60):
            try:
                found.put(len(index.search(draw_photo(0, 0), k=50)))
            except UserError as error:
                found.put(str(error))


@contextlib.contextmanager
def reader(folder):
    """Another user, who keeps the index open and can be asked how many images he finds."""
    said, found = processes.Queue(), processes.Queue()
    process = processes.Process(target=_answer, args=(folder, said, found))
    process.start()

    def count():
        said.put(True)
        return found.get(timeout=60)

    yield count
    said.put(False)
    process.join()
    assert process.exitcode == 0


def as_nobody(folder):
    queue = processes.Queue()
    process = processes.Process(target=_as_nobody, args=(folder, queue))
    process.start()
    answer = queue.get(timeout=60)
    process.join()
    return answer


@pytest.fixture
def public(photos, tmp_path):
    """The photos where every user may read them."""
    for folder in [photos, *photos.parents]:
        if folder.stat().st_uid == os.getuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o055)
    return photos


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
class TestPermissions:
    def test_a_read_only_folder_says_where_else_the_index_can_stand(self, public):
        message = as_nobody(public)
        assert "can't be written there (permission denied): name a file in another folder with --index" in message
        assert not list(public.glob(".*"))

    def test_an_index_in_a_read_only_folder_can_be_searched(self, public):
        updated(public)
        assert as_nobody(public) == (0, [], 12)
        draw_photo(0, 9).save(public / "new.png")
        assert "name a file in another folder with --index" in as_nobody(public)

    def test_a_file_that_may_not_be_read_is_reported_and_tried_again(self, public):
        public.chmod(0o777)
        (public / "sky" / "0.jpg").chmod(0)
        assert as_nobody(public) == (11, [f"{public / 'sky' / '0.jpg'}: permission denied"], 11)
        (public / "sky" / "0.jpg").chmod(0o644)
        assert as_nobody(public) == (1, [], 12)

    def test_the_images_of_a_folder_that_may_not_be_listed_are_not_taken_for_removed(self, public):
        public.chmod(0o777)
        assert as_nobody(public) == (12, [], 12)
        (public / "sky").chmod(0)
        assert as_nobody(public).startswith(f"{public / 'sky'}: permission denied")
        (public / "sky").chmod(0o755)
        assert as_nobody(public) == (0, [], 12)

    def test_a_reader_who_may_not_write_sees_what_the_owner_writes(self, public):
        updated(public)
        with reader(public) as count:
            assert count() == 12
            draw_photo(0, 30).save(public / "sky" / "new.jpg")
            with open_index(public) as owner:
                owner.update()
                assert count() == 13  # what is in the write-ahead log as yet
                draw_photo(0, 31).save(public / "sky" / "newer.jpg")
                owner.update()
                assert count() == 14
            assert count() == 14
            (public / "sky" / "new.jpg").unlink()
            updated(public)
            assert count() == 13

    def test_a_reader_who_may_not_write_is_told_when_the_index_is_another(self, public):
        updated(public)
        with reader(public) as count:
            assert count() == 12
            (public / INDEX_NAME).rename(public / "aside")
            assert count() == f"{public / INDEX_NAME}: the index has been removed"
            with open_index(public, name="another") as anew:
                anew.update()
            for _ in range(2):
                assert count() == f"{public / INDEX_NAME}: another encoder has created the index anew: start again"

    def test_a_file_that_may_not_be_written_in_a_folder_that_may(self, public):
        updated(public)
        public.chmod(0o777)
        (public / f"{INDEX_NAME}.lock").unlink()
        draw_photo(0, 9).save(public / "new.png")
        assert "can't be written there: name a file in another folder with --index" in as_nobody(public)
        (public / f"{INDEX_NAME}.lock").unlink()
        assert updated(public) == (1, 0, 12, 0)

    def test_a_query_goes_on_with_an_index_that_it_may_not_bring_up_to_date(self, public, resnet_weights, tmp_path):
        resnet_weights.parent.chmod(0o755)
        assert main(["index", str(public), "--encoder", "resnet18", "--weights", str(resnet_weights)]) == 0
        draw_photo(0, 30).save(public / "sky" / "new.jpg")
        (public / "sky" / "gone.jpg").symlink_to("nowhere.jpg")
        queue = processes.Queue()
        process = processes.Process(target=_ask, args=(public, public / "sky" / "new.jpg", queue))
        process.start()
        status, out, err = queue.get(timeout=60)
        process.join()
        assert (status, out.count(".jpg")) == (0, 1 + 12)
        assert "can't be written there (permission denied)" in err
        assert "going on with what the index has so far" in err
