"""The commands of retrieval, as a user runs them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from retrieval.cli import main
from retrieval.stores.sqlite import SQLiteStore
from tests.conftest import REPOSITORY, draw_photo, start


@pytest.fixture
def place(photos, tmp_path, monkeypatch):
    """A current folder with ``photos/`` and ``query_images/``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query_images").mkdir()
    for kind, name in enumerate(("sky", "grass", "sand")):
        draw_photo(kind, 30).save(tmp_path / "query_images" / f"{name}_30.jpg", quality=95)
    return tmp_path


@pytest.fixture
def encoder(resnet_weights):
    return ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer2"]


@pytest.fixture
def indexed(place, encoder, capsys):
    assert main(["index", "photos", *encoder]) == 0
    capsys.readouterr()
    return place


def run(capsys, *args):
    """Run a command that succeeds; returns what it prints, and what it says beside that."""
    status = main(list(args))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out, captured.err


def failure(capsys, *args):
    """Run a command that fails; returns its one line."""
    assert main(list(args)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def rows_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_index_says_what_it_did(place, encoder, capsys):
    out, _ = run(capsys, "index", "photos", *encoder)
    assert out == "photos/.digitdoodle.sqlite: 12 encoded, 0 known by content, 0 unchanged, 0 removed\n"
    out, _ = run(capsys, "index", "photos", "--json")
    assert rows_of(out) == [
        {"encoded": 0, "known": 0, "unchanged": 12, "removed": 0, "errors": [], "index": "photos/.digitdoodle.sqlite"}
    ]


def test_index_names_the_files_that_it_passes_over(place, encoder, capsys):
    Path("photos/sky/0.jpg").rename("photos/sky/0.jfif")
    Path("photos/sky/1.jpg").rename("photos/sky/1.psd")
    Path("photos/linked").symlink_to(place / "query_images")
    out, err = run(capsys, "index", "photos", *encoder)
    assert "11 encoded" in out
    assert "photos: passed over 1 links to folders, which are not followed (linked); 1 .psd files" in err


def test_the_labels_of_a_folder_that_was_split_by_others_are_its_classes(place, encoder, capsys):
    shutil.copytree("photos", "split/train")
    shutil.copytree("photos", "split/val")
    run(capsys, "index", "split", *encoder)
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "split", "--json")
    assert {row["label"] for row in rows_of(out)} <= {"sky", "grass", "sand"}


def test_labels_follow_a_folder_that_comes_to_be_split(place, encoder, capsys):
    shutil.copytree("photos", "split/train")
    shutil.copytree("query_images", "split/val/sky")
    Path("split/val").rename("split/other")
    run(capsys, "index", "split", *encoder)
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "split", "--json", "-k", "20")
    assert {row["label"] for row in rows_of(out)} <= {"train", "other"}
    Path("split/other").rename("split/val")
    out, _ = run(capsys, "index", "split", *encoder)
    assert " 0 encoded, " in out
    for command in (["query", "sky_30.jpg", "--database"], ["evaluate"]):
        out, _ = run(capsys, *command, "split", "--json")
        assert {row.get("label", row.get("class")) for row in rows_of(out)} <= {"sky", "grass", "sand", "all"}


def test_query_finds_the_images_of_the_same_kind(indexed, capsys):
    out, err = run(capsys, "query", "sky_30.jpg", "--database", "photos")
    lines = out.splitlines()
    assert lines[0] == "query_images/sky_30.jpg:"
    assert lines[1].split() == ["distance", "label", "path"]
    assert [line.split()[1] for line in lines[2:]] == ["sky"] * 4
    assert all((indexed / line.split()[2]).is_file() for line in lines[2:])
    assert err == ""


def test_query_with_a_part_of_an_image_or_with_several(indexed, capsys):
    out, _ = run(capsys, "query", "sky_30.jpg", "--region", "8,8,40,40", "--database", "photos", "--figure", "part.png")
    assert out.splitlines()[0] == "query_images/sky_30.jpg [8,8,40,40]:"
    assert [line.split()[1] for line in out.splitlines()[2:]] == ["sky"] * 4
    words = ["sky_30.jpg", "+", "grass_30.jpg", "-", "sand_30.jpg", "sand_30.jpg"]
    out, _ = run(
        capsys, "query", *words, "--database", "photos", "-k", "8", "--json", "--figure", "both.png", "--explain"
    )
    rows = rows_of(out)
    together = "query_images/sky_30.jpg + query_images/grass_30.jpg - query_images/sand_30.jpg"
    assert [row["query"] for row in rows] == [together] * 8 + ["query_images/sand_30.jpg"] * 8
    assert {row["label"] for row in rows[:8]} == {"sky", "grass"}
    for name in ("part.png", "both.png"):
        assert Image.open(name).size[0] > 300


def test_nothing_similar_is_an_answer(indexed, encoder, capsys):
    for kind, name in enumerate(("sky", "grass", "sand")):
        for seed in range(4, 12):
            draw_photo(kind, seed).save(f"photos/{name}/{seed}.jpg", quality=95)
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save("noise.png")
    query = ["query", "noise.png", "sky_30.jpg", "--database", "photos", "--max-distance"]
    out, _ = run(capsys, *query, "auto", "--figure", "found.png")
    assert re.match(r"noise.png: nothing similar \(no image within 0\.\d{3}\)\nquery_images/sky_30.jpg:\n", out)
    assert Image.open("found.png").size[0] > 300
    reach = float(re.search(r"within (0\.\d+)", out)[1])
    assert {row["query"] for row in rows_of(run(capsys, *query, "auto", "--json")[0])} == {"query_images/sky_30.jpg"}
    all_of_them = rows_of(run(capsys, *query, "2", "--json", "-k", "36")[0])
    near = rows_of(run(capsys, *query, str(reach), "--json", "-k", "36")[0])
    assert near == [row for row in all_of_them if row["distance"] <= reach]
    assert 0 < len(near) < len(all_of_them) == 72


def test_evaluate_counts_what_finds_no_match(indexed, capsys):
    for kind, name in enumerate(("sky", "grass", "sand")):
        for seed in range(4, 12):
            draw_photo(kind, seed).save(f"photos/{name}/{seed}.jpg", quality=95)
    Path("foreign").mkdir()
    for seed in range(4):
        noise = np.random.default_rng(seed).integers(0, 255, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(f"foreign/{seed}.png")
    (row,) = rows_of(run(capsys, "evaluate", "photos", "--foreign", "foreign", "--json")[0])
    assert (row["own"], row["foreign"], row["foreign_refused"]) == (36, 4, 1)
    assert 0 < row["own_refused"] <= 0.1
    failure(capsys, "evaluate", "photos", "--foreign", "foreign", "--recall")


def test_a_copy_does_not_move_the_distance_of_a_match(indexed, capsys):
    def reach():
        run(capsys, "index", "photos")
        return re.search(r"within (\S+)\)", run(capsys, *query, "auto")[0])[1]

    for kind, name in enumerate(("sky", "grass", "sand")):
        for seed in range(4, 12):
            draw_photo(kind, seed).save(f"photos/{name}/{seed}.jpg", quality=95)
    Image.new("RGB", (9, 9)).save("black.png")
    query = ["query", "black.png", "--database", "photos", "--max-distance"]
    before = reach()
    for path in list(Path("photos").glob("*/*.jpg"))[::2]:
        Image.open(path).save(path.with_suffix(".webp"), quality=90)
    assert abs(float(reach()) - float(before)) < 0.1 * float(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sky_30.jpg", "--max-distance", "auto"], "photos: fewer than 20 different images: too few to tell a match"),
        (["sky_30.jpg", "+"], "sky_30.jpg +: a + stands between two images"),
        (["-", "sky_30.jpg"], "a - stands between two images"),
        (["sky_30.jpg", "+", "-", "sand_30.jpg"], "a - stands between two images"),
        (["sky_30.jpg", "-", "sky_30.jpg"], "the images cancel each other out"),
        (["sky_30.jpg", "sand_30.jpg", "--region", "0,0,9,9"], "--region is a part of one image"),
        (["sky_30.jpg", "--region", "0,0,9,9000"], "does not lie in the image of"),
        (["sky_30.jpg", "--label", "Sky"], "no image has the label Sky: there are grass, sand, sky"),
    ],
)
def test_queries_that_can_not_be_are_one_clear_line(indexed, capsys, options, message):
    err = failure(capsys, "query", *options, "--database", "photos")
    assert message in err
    assert err.count("\n") == 1


def test_query_prints_json_lines(indexed, capsys):
    out, _ = run(capsys, "query", "sky_30.jpg", "grass_30.jpg", "--database", "photos", "-k", "2", "--json")
    rows = rows_of(out)
    assert [(row["query"], row["rank"], row["label"]) for row in rows] == [
        ("query_images/sky_30.jpg", 1, "sky"),
        ("query_images/sky_30.jpg", 2, "sky"),
        ("query_images/grass_30.jpg", 1, "grass"),
        ("query_images/grass_30.jpg", 2, "grass"),
    ]
    assert rows[0]["distance"] < rows[1]["distance"]


def test_query_looks_beside_the_database_too(indexed, capsys, monkeypatch):
    (indexed / "deeper").mkdir()
    monkeypatch.chdir(indexed / "deeper")
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "../photos")
    assert "query_images/sky_30.jpg:\n" in out


def test_an_index_that_is_not_to_be_made_is_missed_before_weights_are(place, capsys, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args: pytest.fail("weights are downloaded"))
    err = failure(capsys, "query", "sky_30.jpg", "--database", "photos", "--no-update")
    assert "photos/.digitdoodle.sqlite: no index there; create one with `python -m retrieval index`" in err


def test_query_makes_the_index_and_brings_it_up_to_date(place, encoder, capsys):
    _, err = run(capsys, "query", "sky_30.jpg", "--database", "photos", *encoder)
    assert "photos: index brought up to date: 12 encoded" in err
    shutil.copy("query_images/sky_30.jpg", "photos/sky/copy.jpg")
    draw_photo(0, 31).save("photos/new.jpg")
    (place / "photos" / "broken.jpg").write_text("no picture")
    out, err = run(capsys, "query", "sky_30.jpg", "--database", "photos", "--include-self", "--no-update")
    assert "copy.jpg" not in out
    assert err == ""
    out, err = run(capsys, "query", "sky_30.jpg", "--database", "photos", "--include-self")
    assert out.splitlines()[2].split() == ["0.0000", "sky", "photos/sky/copy.jpg"]
    assert "2 encoded" in err
    assert "1 files can't be read" in err


def test_k_and_label_choose_how_many_and_among_which(indexed, capsys):
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "photos", "-k", "50")
    assert len(out.splitlines()) == 2 + 12
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "photos", "--label", "sand")
    assert {line.split()[1] for line in out.splitlines()[2:]} == {"sand"}


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_figure_shows_query_and_matches(indexed, capsys, k):
    run(capsys, "query", "sky_30.jpg", "--database", "photos", "-k", f"{k}", "--figure", "matches.png", "--explain")
    figure = Image.open("matches.png")
    assert figure.width >= 250 * min(k + 1, 7)
    assert len(figure.convert("RGB").getcolors(2**24)) > 1000


def test_what_is_found_is_printed_also_if_it_cannot_be_drawn(indexed, capsys):
    (indexed / "photos" / "sky" / "0.jpg").unlink()
    args = ["query", "sky_30.jpg", "--database", "photos", "-k", "12", "--no-update"]
    assert main([*args, "--figure", "matches.png"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 + 12
    assert captured.err == "error: photos/sky/0.jpg: no such file or directory\n"
    assert not (indexed / "matches.png").exists()


def test_what_is_not_said_of_the_encoder_is_as_the_index_was_made(indexed, resnet_weights, capsys):
    moved = shutil.copy(resnet_weights, indexed / "moved.pth")
    out, _ = run(capsys, "query", "sky_30.jpg", "--database", "photos", "--weights", str(moved))
    assert out == run(capsys, "query", "sky_30.jpg", "--database", "photos")[0]


def test_evaluate_scores_by_class(indexed, capsys):
    out, _ = run(capsys, "evaluate", "photos", "--figure", "worst.png")
    header, *lines = [line.split() for line in out.splitlines()]
    assert header == ["class", "queries", "precision@1", "precision@4", "precision@10", "mAP"]
    assert [line[:2] for line in lines] == [["grass", "4"], ["sand", "4"], ["sky", "4"], ["all", "12"]]
    assert 0 <= float(lines[-1][-1]) <= 1
    assert Image.open("worst.png").height > 1000
    out, _ = run(capsys, "evaluate", "photos", "--queries", "query_images", "--json")
    rows = rows_of(out)
    assert rows[-1]["class"] == "all"
    assert rows[-1]["queries"] == 3
    assert rows[-1]["precision@1"] == 1


def test_the_worst_queries_are_drawn_with_what_was_scored(place, encoder, capsys, monkeypatch):
    shutil.copy("query_images/sky_30.jpg", "photos/alone.jpg")  # in no class folder, so that it isn't ranked
    run(capsys, "index", "photos", *encoder, "--crops")
    drawn = []
    monkeypatch.setattr("retrieval.plots.plot_results", lambda results: drawn.extend(results) or Figure())
    _, err = run(capsys, "evaluate", "photos", "--figure", "worst.png")
    assert "scores are of whole images: crops, which a query searches as well, don't count" in err
    with SQLiteStore(Path("photos/.digitdoodle.sqlite")) as store:
        records, matrix = store.vectors()
    places = {Path("photos", record.path): row for row, record in enumerate(records)}
    del places[Path("photos/alone.jpg")]
    assert len(drawn) == 5
    for query, matches in drawn:
        distances = {path: np.linalg.norm(matrix[row] - matrix[places[query]]) for path, row in places.items()}
        closest = sorted(places.keys() - {query}, key=distances.__getitem__)[:4]
        assert [match.path for match in matches] == closest
        assert [match.label for match in matches] == [path.parent.name for path in closest]
        np.testing.assert_allclose([match.distance for match in matches], [distances[path] for path in closest])
    _, err = run(capsys, "evaluate", "photos", "--queries", "query_images", "--figure", "worst.png")
    assert "scores are of whole images" in err
    assert {query.parent.name for query, _ in drawn[5:]} == {"query_images"}
    _, err = run(capsys, "evaluate", "photos", "--index", "other.sqlite", *encoder)
    assert "scores are of whole images" not in err


@pytest.mark.parametrize(
    ("args", "figure"),
    [
        (["audit", "."], "audit.png"),
        (["audit", ".", "--figure", "sky/found.JPG"], "sky/found.JPG"),
        (["query", "sky/0.jpg", "--database", ".", "--figure", "x.png"], "x.png"),
        (["evaluate", "../photos", "--figure", "x.webp"], "x.webp"),
    ],
)
def test_a_figure_is_not_put_among_the_images_that_are_searched(indexed, capsys, monkeypatch, args, figure):
    monkeypatch.chdir("photos")
    before = sorted(Path().rglob("*"))
    err = failure(capsys, *args)
    assert f"error: {figure}: would be one of the images that are searched; name another place with --figure\n" == err
    assert sorted(Path().rglob("*")) == before
    if args[0] == "audit":
        run(capsys, "audit", ".", "--figure", ".found.png")
        run(capsys, "audit", ".", "--figure", "../found.png")
        run(capsys, "audit", ".", "--figure", "found.pdf")


def test_audit_finds_what_is_wrong(indexed, capsys):
    shutil.copy("photos/sky/0.jpg", "photos/grass/copy.jpg")
    again = Image.open("photos/sand/1.jpg")
    again.save("photos/sand/again.jpg", quality=90)
    Path("split.csv").write_text("file,label,subset\nsand/1.jpg,sand,train\nsand/again.jpg,sand,val\n")
    out, err = run(capsys, "audit", "photos", "--threshold", "0.02")
    assert "14 images; near-duplicates are closer than 0.0200" in err
    rows = list(csv.DictReader(Path("audit.csv").read_text().splitlines()))
    assert [(row["kind"], row["path"], row["other"]) for row in rows][:2] == [
        ("duplicate", "grass/copy.jpg", "sky/0.jpg"),
        ("near-duplicate", "sand/1.jpg", "sand/again.jpg"),
    ]
    assert len(out.splitlines()) == len(rows) + 1
    assert Image.open("audit.png").width > 1000
    out, _ = run(capsys, "audit", "photos", "--split", "split.csv", "--threshold", "0.02", "--json")
    assert rows_of(out)[0] | {"distance": 0} == {
        "kind": "leak",
        "path": "sand/1.jpg",
        "other": "sand/again.jpg",
        "distance": 0,
        "label": "sand",
        "other_label": "sand",
    }


def test_a_classifier_of_ours_searches_what_it_knows(trained, capsys):
    encoder = ["--encoder", str(trained / "checkpoints" / "best.ckpt")]
    out, _ = run(capsys, "query", "digits/0_digits/3.png", "--database", "digits", *encoder)
    assert len(out.splitlines()) == 6
    out, _ = run(capsys, "evaluate", "digits", "--json")
    assert rows_of(out)[-1]["queries"] == 60


def test_unreadable_files_fail_once_the_others_are_indexed(place, encoder, capsys):
    (place / "photos" / "text\n.png").write_text("no picture")
    out, err = "", failure_after_work(capsys, "index", "photos", *encoder)
    assert "1 of 13 files can't be read, the others are indexed; repair or remove them" in err
    assert "photos/text\\n.png: not an image of a format that is read" in err
    out, err = run(capsys, "index", "photos", "--on-unreadable", "skip")
    assert "12 unchanged" in out
    assert "text\\n.png" in err


def failure_after_work(capsys, *args):
    assert main(list(args)) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["index", "missing"], "missing: no such folder"),
        (["index", "query_images/sky_30.jpg"], "sky_30.jpg: not a folder"),
        (["index", "empty"], "empty: no images in this folder (.avif, .bmp"),
        (["index", "empty", "--weights", "missing"], "empty: no images in this folder"),
        (["query", "sky_30.jpg", "--database", "missing"], "missing: no such folder"),
        (["query", "no.jpg", "--database", "photos"], "no such image: no.jpg, query_images/no.jpg"),
        (["query", "sub/no.jpg", "--database", "photos"], "no such image: sub/no.jpg\n"),
        (["query", "text.jpg", "--database", "photos"], "text.jpg: not an image of a format that is read"),
        (["query", "zero.jpg", "--database", "photos"], "zero.jpg: empty file"),
        (["query", "cut.jpg", "--database", "photos"], "cut.jpg: "),
        (["query", "sky_30.jpg", "--database", "photos", "-k", "0"], "k must be at least 1, got 0"),
        (["query", "sky_30.jpg", "--database", "photos", "--explain"], "name it with --figure FILE"),
        (["query", "sky_30.jpg", "--database", "photos", "--figure", "x.abc"], "x.abc: not a picture format"),
        (["query", "sky_30.jpg", "--database", "photos", "--figure", "no/x.png"], "no/x.png: no such folder"),
        (["query", "sky_30.jpg", "--database", "photos", "--figure", "empty"], "empty: a folder; name a file in it"),
        (["evaluate", "photos", "--figure", "x.abc"], "x.abc: not a picture format"),
        (["audit", "photos", "--figure", "x.abc"], "x.abc: not a picture format"),
        (["audit", "photos", "--output", "no/x.csv"], "no/x.csv: no such folder"),
        (
            ["query", "sky_30.jpg", "--database", "photos", "--layer", "layer3"],
            "was made with layer layer2, not layer3",
        ),
        (["query", "sky_30.jpg", "--database", "photos", "--layer", "layer9"], "resnet18 has no maps at layer9"),
        (["query", "sky_30.jpg", "--database", "photos", "--encoder", "resnet7"], "unknown encoder resnet7"),
        (["query", "sky_30.jpg", "--database", "photos", "--encoder", "text.jpg"], "text.jpg: not written by torch"),
        (
            ["query", "sky_30.jpg", "--database", "photos", "--encoder", "best.ckpt"],
            "--encoder best.ckpt: no such file, nor is there a module best in the current folder or installed",
        ),
        (["query", "sky_30.jpg", "--database", "empty", "--index", "text.jpg"], "text.jpg: damaged, or not an index"),
        (["evaluate", "photos", "--queries", "empty"], "empty: not a folder of images"),
        (["evaluate", "photos", "--queries", "photos/sky"], "unknown class"),
        (["audit", "photos", "--split", "no.csv"], "no.csv: no such file"),
        (["audit", "photos", "--split", "other.csv"], "other.csv: names none of the images in photos"),
    ],
)
def test_bad_input_is_one_clear_line(indexed, capsys, args, message):
    (indexed / "empty").mkdir()
    (indexed / "text.jpg").write_text("no picture")
    (indexed / "zero.jpg").touch()
    (indexed / "cut.jpg").write_bytes((indexed / "photos" / "sky" / "0.jpg").read_bytes()[:700])
    (indexed / "other.csv").write_text("file,label,subset\nx.png,a,train\n")
    if args[:2] == ["index", "empty"]:
        args = [*args, "--encoder", "resnet18", "--weights", weights_of(indexed)]
    err = failure(capsys, *args)
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list((indexed / "empty").iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["serve", "photos", "--port", "70000"], "argument --port: a port from 1 to 65535, not 70000"),
        (["serve", "photos", "--port", "http"], "argument --port: a port from 1 to 65535, not http"),
        (["serve", "photos", "--json"], "unrecognized arguments: --json"),
        (
            ["query", "a.jpg", "--database", "photos", "--region", "1,2,3,4,5"],
            "expected four pixel coordinates LEFT,TOP,RIGHT,BOTTOM, got 1,2,3,4,5",
        ),
    ],
)
def test_options_that_can_not_be_are_told_by_name(capsys, args, message):
    with pytest.raises(SystemExit):
        main(args)
    assert message in capsys.readouterr().err


def weights_of(place):
    from retrieval.stores.sqlite import SQLiteStore

    with SQLiteStore(place / "photos" / ".digitdoodle.sqlite") as store:
        return json.loads(store.header["built"])["arguments"]["weights"]


def test_an_index_whose_encoder_is_gone_says_so(indexed, resnet_weights, capsys):
    moved = shutil.copy(resnet_weights, indexed / "own.pth")
    run(capsys, "index", "photos", "--index", "own.sqlite", "--encoder", "resnet18", "--weights", str(moved))
    (indexed / "own.pth").unlink()
    err = failure(capsys, "query", "sky_30.jpg", "--database", "photos", "--index", "own.sqlite")
    assert "the encoder that made the index isn't available" in err
    assert "own.pth: no such file" in err


def test_the_real_command_fails_with_its_status_and_one_line(indexed):
    process = start("query", "no.jpg", "--database", "photos", module="retrieval")
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert err.startswith("error: no such image")


@pytest.mark.slow
def test_help_does_not_import_torch_and_searching_does_not_import_lightning(indexed):
    program = (
        "import sys; from retrieval.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert main(['query', 'sky_30.jpg', '--database', 'photos', '--json']) == 0\n"
        "loaded = {'lightning', 'timm', 'matplotlib', 'pymilvus'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True)
    assert len(rows_of(done.stdout.partition("{")[1] + done.stdout.partition("{")[2])) == 4


def test_from_a_script(photos, resnet_weights):
    from retrieval import Example, ImageIndex, ResNetEncoder, plot_matches

    index = ImageIndex.open(photos, encoder=ResNetEncoder("resnet18", resnet_weights))
    index.update()
    matches = index.search(photos / "sky" / "0.jpg", k=4)
    figure = plot_matches(photos / "sky" / "0.jpg", matches)
    assert [axes.get_title() for axes in figure.axes] == ["Query Image", *(f"Similar Image {n}" for n in range(1, 5))]
    assert figure.axes[1].get_xlabel() == f"{matches[0].distance:.3f}\n{matches[0].label}\n{matches[0].path.name}"
    drawn = [Example(draw_photo(0, 5)), Example(photos / "sand" / "0.jpg", (9, 9, 60, 60), -1)]
    figure = plot_matches(drawn, index.search(drawn))
    assert figure.axes[0].get_xlabel() == "image\n- 0.jpg [9,9,60,60]"
    index.close()
    with pytest.raises(AttributeError):
        __import__("retrieval").no_such_name  # noqa: B018


def test_real_photographs_find_their_class(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in sorted((shared / "data" / "photos" / "images_database").glob("*/*.jpg"))[::4]:
        (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / path.parent.name / path.name).symlink_to(path)
    weights = shared / "weights" / "resnet18_to_layer3.pth"
    encoder = ["--encoder", "resnet18", "--weights", str(weights), "--layer", "layer3"]
    out, _ = run(capsys, "evaluate", "photos", "--json", *encoder)
    assert rows_of(out)[-1]["queries"] == 125
    assert rows_of(out)[-1]["mAP"] >= 0.72
    out, _ = run(capsys, "evaluate", "photos", "--queries", str(shared / "data" / "photos" / "query_images"), "--json")
    assert rows_of(out)[-1]["precision@4"] >= 0.8


def test_folders_and_weights_may_have_names_that_are_not_utf_8(photos, resnet_weights, tmp_path, capsys):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    photos.rename(odd / "photos")
    shutil.copy(resnet_weights, odd / "own.pth")
    options = ["--encoder", "resnet18", "--weights", str(odd / "own.pth")]
    out, _ = run(capsys, "index", str(odd / "photos"), *options)
    assert out.startswith(f"{tmp_path}/caf\\udce9/photos/.digitdoodle.sqlite: 12 encoded")
    out, _ = run(capsys, "query", str(odd / "photos" / "sky" / "0.jpg"), "--database", str(odd / "photos"))
    assert len(out.splitlines()) == 2 + 4
