"""Duplicates: planned, moved to the trash, and moved back, whatever comes between."""

import csv
import json
import os
import shutil
import signal
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image, ImageFilter

from retrieval.audit import audit
from retrieval.cleanup import find_groups, make_plan
from retrieval.cli import main
from retrieval.stores.base import Record
from tests.conftest import draw_photos, start
from tests.test_audit import on_a_circle

KILLER = """
import os, signal, sys
EVENTS = "open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"
left = int(os.environ["KILL_AT"])

def kill_in_time(event, args):
    global left
    if event in EVENTS and ".digitdoodle-trash" in str(args):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_in_time)
"""


@pytest.fixture(scope="module")
def home(resnet_weights, tmp_path_factory):
    """A folder with ``photos/``, indexed: 12 pictures, three copies of one, four versions of another; and a plan."""
    home = tmp_path_factory.mktemp("home")
    photos = draw_photos(home / "photos")
    for name in ("grass/copy.jpg", "grass/again.jpg", "sand/odd 'ö', \n.jpg"):
        shutil.copy(photos / "sky" / "0.jpg", photos / name)
    with Image.open(photos / "sand" / "1.jpg") as image:
        image.save(photos / "sky" / "q90.jpg", quality=90)
        image.save(photos / "sand" / "q70.jpg", quality=70)
        image.resize((240, 180)).save(photos / "sand" / "large.png")
        image.resize((60, 45)).save(photos / "sand" / "small.png")
    for age, path in enumerate(sorted(photos.rglob("*.*g"), reverse=True)):
        os.utime(path, (1e9 - age, 1e9 - age))
    encoder = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["audit", "photos", "--threshold", "0.02", "--plan", "plan.csv", *encoder]) == 0
    return home


@pytest.fixture
def collection(home, tmp_path, monkeypatch):
    """The same as the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(capsys, *args):
    """Run the audit, which succeeds; returns what it prints."""
    status = main(["audit", "photos", *args])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def failure(capsys, *args):
    """Run the audit, which fails; returns its one line."""
    assert main(["audit", "photos", *args]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


def rows_of(name="plan.csv"):
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows, name="plan.csv"):
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def plan(collection):
    """The rows of its ``plan.csv``."""
    return rows_of()


def kept(rows):
    return [row["path"] for row in rows if row["action"] == "keep"]


def files(folder="photos"):
    """The images in a folder by path, hidden ones as well."""
    paths = (path for path in Path(folder).rglob("*") if path.suffix in (".jpg", ".png"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_plan_has_a_row_for_each_image_of_a_group(plan):
    copies = [row for row in plan if row["group"] == "1"]
    assert [(row["action"], row["kind"]) for row in copies] == [("keep", "")] + [("move", "duplicate")] * 3
    assert {row["path"] for row in copies} == {
        "sky/0.jpg",
        "grass/copy.jpg",
        "grass/again.jpg",
        "sand/odd 'ö', \n.jpg",
    }
    versions = {row["path"]: row for row in plan if row["group"] == "2"}
    assert next(iter(versions)) == "sand/large.png"
    assert {"sand/1.jpg", "sky/q90.jpg", "sand/q70.jpg"} <= set(versions)
    moved = versions["sky/q90.jpg"]
    assert (moved["action"], moved["kind"], moved["like"]) == ("move", "near-duplicate", "sand/large.png")
    assert 0 < float(moved["distance"]) < 0.02
    assert (moved["width"], moved["height"]) == ("120", "90")
    assert int(moved["bytes"]) == Path("photos/sky/q90.jpg").stat().st_size


@pytest.mark.parametrize(
    ("keep", "copy", "version"),
    [
        ("largest", "grass/again.jpg", "sand/large.png"),
        ("oldest", "grass/again.jpg", "sand/1.jpg"),
        ("sky", "sky/0.jpg", "sky/q90.jpg"),
        ("./sand/", "sand/odd 'ö', \n.jpg", "sand/large.png"),
    ],
)
def test_what_is_kept_can_be_chosen(collection, capsys, keep, copy, version):
    run(capsys, "--threshold", "0.02", "--plan", "plan.csv", "--keep", keep)
    first = {row["group"]: row["path"] for row in reversed(rows_of())}
    assert (first["1"], first["2"]) == (copy, version)
    assert {copy, version} <= set(kept(rows_of()))


def records_of(*paths, sizes=None):
    sizes = sizes or [(9, 9)] * len(paths)
    return [
        Record(path, 1, 1, bytes([row]), None, *size) for row, (path, size) in enumerate(zip(paths, sizes, strict=True))
    ]


def planned(folder, records, vectors, threshold, keep="largest"):
    findings, _ = audit(records, vectors, threshold=threshold)
    return make_plan(folder, records, vectors, find_groups(records, findings), threshold, keep)


def test_the_sharpest_is_not_blurred_reduced_or_compressed_again(tmp_path):
    grain = np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)
    sharp = Image.fromarray(grain).resize((240, 180), Image.Resampling.BICUBIC)
    sharp.filter(ImageFilter.GaussianBlur(2)).resize((480, 360)).save(tmp_path / "blurred.png")
    sharp.resize((80, 60)).save(tmp_path / "reduced.png")
    sharp.save(tmp_path / "sharp.png")
    sharp.save(tmp_path / "sharp_again.jpg", quality=80)
    names = "blurred.png", "reduced.png", "sharp.png", "sharp_again.jpg"
    records = records_of(*names, sizes=[(480, 360), (80, 60), (240, 180), (240, 180)])
    vectors = on_a_circle(0, 0.01, 0.02, 0.03)
    assert planned(tmp_path, records, vectors, 0.1, "sharpest")[0].path == "sharp.png"
    assert planned(tmp_path, records, vectors, 0.1, "largest")[0].path == "blurred.png"


def test_of_copies_the_one_whose_name_says_nothing_of_it_is_kept(tmp_path):
    records = records_of("a/IMG (1).jpg", "a/IMG - copy.jpg", "a/IMG.jpg", "c/other.jpg")
    plan = planned(tmp_path, records, on_a_circle(0, 0, 0, 90), threshold=0.01)
    assert [row.path for row in plan] == ["a/IMG.jpg", "a/IMG (1).jpg", "a/IMG - copy.jpg"]


def test_the_ends_of_a_chain_are_both_kept_unless_its_middle_stands_for_them(tmp_path):
    ends = records_of("a", "b", "c", "d", sizes=[(9, 9), (8, 8), (9, 9), (9, 9)])
    plan = planned(tmp_path, ends, on_a_circle(0, 1, 2.1, 90), threshold=0.02)
    assert [(row.group, row.path, row.action, row.like) for row in plan] == [
        (1, "a", "keep", ""),
        (1, "c", "keep", ""),
        (1, "b", "move", "a"),
    ]
    middle = records_of("a", "b", "c", "d", sizes=[(9, 9), (10, 10), (9, 9), (9, 9)])
    plan = planned(tmp_path, middle, on_a_circle(0, 1, 2.1, 90), threshold=0.02)
    assert [(row.path, row.action) for row in plan] == [("b", "keep"), ("a", "move"), ("c", "move")]


def test_more_copies_than_the_audit_looks_at_are_one_group_below_a_threshold(tmp_path):
    records = records_of(*(f"{number:02}" for number in range(40)))
    plan = planned(tmp_path, records, on_a_circle(*np.linspace(0, 0.5, 30), *range(90, 100)), threshold=0.01)
    assert [row.action for row in plan] == ["keep"] + ["move"] * 29


def test_links_stay_and_so_does_what_they_point_to(collection, capsys):
    Path("photos/sky/0.jpg").rename("photos/sky/target.jpg")
    Path("photos/sky/0.jpg").symlink_to("target.jpg")
    run(capsys, "--threshold", "0.02", "--plan", "plan.csv", "--keep", "grass")
    copies = {row["path"]: row["action"] for row in rows_of() if row["group"] == "1"}
    assert copies["sky/target.jpg"] == copies["grass/again.jpg"] == "keep"
    assert copies["grass/copy.jpg"] == "move"
    assert "sky/0.jpg" not in copies


def test_leaks_between_the_sides_of_a_split_are_in_the_plan(collection, capsys):
    Path("split.csv").write_text("file,label,subset\nsky/0.jpg,sky,train\ngrass/copy.jpg,grass,val\n")
    run(capsys, "--threshold", "0.02", "--split", "split.csv", "--plan", "plan.csv")
    assert {"sky/0.jpg", "grass/copy.jpg"} <= {row["path"] for row in rows_of() if row["group"] == "1"}


def test_apply_moves_to_the_trash_and_undo_moves_back(plan, capsys):
    before = files()
    moved = [row["path"] for row in plan if row["action"] == "move"]
    assert run(capsys, "--apply", "plan.csv") == f"photos/.digitdoodle-trash/1: {len(moved)} images moved here\n"
    assert files() == {
        **{path: data for path, data in before.items() if path not in moved},
        **{f".digitdoodle-trash/1/{path}": before[path] for path in moved},
    }
    assert main(["query", "photos/sky/1.jpg", "--database", "photos", "-k", "50", "--json"]) == 0
    captured = capsys.readouterr()
    assert f"{len(moved)} removed" in captured.err
    assert len(captured.out.splitlines()) == len(before) - len(moved) - 1
    assert "trash" not in captured.out
    assert run(capsys, "--apply", "plan.csv") == "photos/.digitdoodle-trash/1: 0 images moved here\n"
    for path in Path("photos/grass").iterdir():
        path.rename(path.name)
    Path("photos/grass").rmdir()
    out = run(capsys, "--undo", "--json")
    assert json.loads(out) == {"moved": len(moved), "trash": "photos/.digitdoodle-trash/1"}
    assert files() == {path: data for path, data in before.items() if not path.startswith("grass/") or path in moved}
    assert not Path("photos/.digitdoodle-trash").exists()
    assert run(capsys, "--undo") == "photos: nothing to move\n"


def test_the_person_has_the_last_word(plan, capsys):
    first, second, *others = plan
    first["action"], second["action"] = "move", "keep"
    for row in others[1:]:
        row["action"] = "keep"
    write([second, *others, first])
    spreadsheet = Path("plan.csv").read_text(encoding="utf-8").encode("utf-8-sig")
    Path("plan.csv").write_bytes(spreadsheet)
    run(capsys, "--apply", "plan.csv")
    trash = Path("photos/.digitdoodle-trash/1")
    assert set(files(trash)) == {first["path"], others[0]["path"]}


def test_clean_ups_are_taken_back_one_by_one_in_any_order(plan, capsys):
    before = files()
    write([row for row in plan if row["group"] == "1"], "one.csv")
    write([row for row in plan if row["group"] != "1"], "two.csv")
    run(capsys, "--apply", "one.csv")
    run(capsys, "--apply", "two.csv")
    assert failure(capsys, "--undo", "3") == "photos: there is no clean-up 3 in .digitdoodle-trash"
    assert "trash/1: 3 images moved back" in run(capsys, "--undo", "1")
    assert "trash/2: " in run(capsys, "--undo")
    assert files() == before
    run(capsys, "--apply", "one.csv")
    assert files() != before


def test_undo_overwrites_nothing(plan, capsys):
    before = files()
    run(capsys, "--apply", "plan.csv")
    moved = [row["path"] for row in plan if row["action"] == "move"]
    taken, lost = moved[0], moved[-1]
    Path("photos", taken).write_text("another image")
    Path("photos/.digitdoodle-trash/1", lost).unlink()
    assert main(["audit", "photos", "--undo"]) == 1
    captured = capsys.readouterr()
    assert f"trash/1: {len(moved) - 2} images moved back" in captured.out
    assert "2 images could not be moved back" in captured.err
    assert f"photos/{taken}: something else is there now, photos/.digitdoodle-trash/1/{taken} stays" in captured.err
    assert f"photos/{lost}: no longer in the trash" in captured.err
    assert files() == {
        **{path: data for path, data in before.items() if path != lost},
        taken: b"another image",
        f".digitdoodle-trash/1/{taken}": before[taken],
    }
    Path("photos", taken).unlink()
    run(capsys, "--undo")
    assert files() == {path: data for path, data in before.items() if path != lost}


def test_undo_follows_no_link_out_of_the_folder(plan, collection, capsys):
    run(capsys, "--apply", "plan.csv")
    shutil.move("photos/sky", "sky")
    Path("photos/sky").symlink_to(collection / "sky")
    before = files("sky")
    assert main(["audit", "photos", "--undo"]) == 1
    assert "photos/sky/0.jpg: something else is there now" in capsys.readouterr().err
    assert files("sky") == before


def change(path, value, column="action"):
    def edit(rows):
        next(row for row in rows if row["path"] == path)[column] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("sky/0.jpg", "mvoe"), "row 5: sky/0.jpg: the action is 'mvoe', write keep or move"),
        (change("sky/0.jpg", ""), "row 5: sky/0.jpg: the action is '', write keep or move"),
        (change("sky/0.jpg", "few", "bytes"), "row 5: sky/0.jpg: not a number where one belongs ("),
        (change("sky/0.jpg", "", "path"), "row 5: : not the path of an image in the folder, relative to it"),
        (change("sky/0.jpg", "../sky/0.jpg", "path"), "row 5: ../sky/0.jpg: not the path of an image in the folder"),
        (change("sky/0.jpg", "sky/../sky/0.jpg", "path"), "row 5: sky/../sky/0.jpg: not the path of an image"),
        (change("sky/0.jpg", "./sky/0.jpg", "path"), "row 5: ./sky/0.jpg: not the path of an image in the folder"),
        (change("sky/0.jpg", "/etc/hosts", "path"), "row 5: /etc/hosts: not the path of an image in the folder"),
        (change("sky/0.jpg", ".digitdoodle.sqlite", "path"), "row 5: .digitdoodle.sqlite: not the path of an image"),
        (change("sky/0.jpg", "grass/copy.jpg", "path"), "row 5: grass/copy.jpg: listed twice"),
        (change("sky/0.jpg", "99", "group"), "row 5: sky/0.jpg: group 99 keeps none of its images, write keep in"),
        (change("grass/again.jpg", "move"), "row 2: grass/again.jpg: group 1 keeps none of its images, write keep in"),
        (change("sky/0.jpg", "0" * 32, "digest"), "row 5: sky/0.jpg: has changed since the plan was written"),
        (lambda rows: Path("photos/sky/0.jpg").unlink(), "row 5: sky/0.jpg: no such file in photos"),
        (lambda rows: Path("photos/grass/again.jpg").unlink(), "row 2: grass/again.jpg: no such file in photos"),
        (lambda rows: Path("photos/sky/0.jpg").write_text("new"), "row 5: sky/0.jpg: has changed since the plan was"),
        (lambda rows: Path("photos/grass/again.jpg").write_text("new"), "row 2: grass/again.jpg: has changed since"),
        (lambda rows: link_in_place_of("photos/sky/0.jpg"), "row 5: sky/0.jpg: a link, or behind one; only files are"),
        (lambda rows: link_in_place_of("photos/sky"), "row 5: sky/0.jpg: a link, or behind one; only files are moved"),
        (
            lambda rows: [row.pop("digest") for row in rows],
            ": not a plan, a CSV file with commas and the columns group",
        ),
    ],
)
def test_of_a_plan_with_a_mistake_nothing_is_done(plan, capsys, edit, message):
    assert [plan[0]["path"], plan[3]["path"]] == ["grass/again.jpg", "sky/0.jpg"]  # rows 2 and 5
    edit(plan)
    write(plan)
    before = files()
    assert message in failure(capsys, "--apply", "plan.csv")
    assert files() == before
    assert not Path("photos/.digitdoodle-trash").exists()


def link_in_place_of(name):
    moved = Path(name).rename(Path("elsewhere").absolute())
    Path(name).symlink_to(moved)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--keep", "oldest"], "--keep chooses for a plan: name it with --plan FILE"),
        (["--plan", "plan.csv", "--keep", "biggest"], "--keep biggest: neither largest, sharpest, oldest nor a folder"),
        (["--plan", "plan.csv", "--keep", "../photos"], "--keep ../photos: neither largest, sharpest, oldest nor a"),
        (["--plan", "no/plan.csv"], "no/plan.csv: no such folder"),
        (["--apply", "no.csv"], "no.csv: no such file or directory"),
        (["--apply", "photos"], "photos: is a directory"),
        (["--undo", "1"], "photos: there is no clean-up 1 in .digitdoodle-trash"),
        (
            ["--undo", "--threshold", "1"],
            "--apply and --undo look for nothing, they move files: leave --threshold out",
        ),
        (
            ["--undo", "--figure", "a.png", "--device", "cpu"],
            "--apply and --undo look for nothing, they move files: leav",
        ),
        (
            ["--apply", "plan.csv", "--encoder", "digits"],
            "--apply and --undo look for nothing, they move files: leave --e",
        ),
    ],
)
def test_bad_options_are_one_clear_line(photos, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, *args).startswith(message)


def test_a_move_that_fails_can_be_gone_on_with(plan, capsys):
    before = files()
    obstacle = Path("photos/.digitdoodle-trash/1/sky")
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("in the way")
    err = failure(capsys, "--apply", "plan.csv")
    assert "photos/sky/0.jpg: can't be moved to photos/.digitdoodle-trash/1/sky/0.jpg: file exists" in err
    assert Counter(files().values()) == Counter(before.values())
    write(plan[:4], "other.csv")
    err = failure(capsys, "--apply", "other.csv")
    journal = "photos/.digitdoodle-trash/1/.unfinished.csv"
    assert f"was interrupted: complete it with --apply {journal}, or take it back with --undo 1" in err
    obstacle.unlink()
    run(capsys, "--apply", journal)
    moved = {row["path"] for row in plan if row["action"] == "move"}
    assert set(files("photos/.digitdoodle-trash/1")) == moved
    run(capsys, "--undo")
    assert files() == before


@pytest.mark.parametrize(
    ("lock", "options"),
    [
        (".digitdoodle.sqlite.lock", []),
        (".digitdoodle-trash.lock", []),
        (".digitdoodle-trash.lock", ["--index", "other.sqlite"]),
    ],
)
def test_nothing_moves_while_another_process_updates_the_index_or_cleans_up(plan, capsys, lock, options):
    before = files()
    with FileLock(f"photos/{lock}"):
        err = failure(capsys, "--apply", "plan.csv", *options)
    assert err == "photos: another process is updating the index or cleaning up; try again later"
    assert files() == before


@pytest.mark.slow
@pytest.mark.parametrize("command", [["--apply", "plan.csv"], ["--undo"]])
def test_a_process_that_is_killed_at_any_moment_loses_no_image(plan, capsys, monkeypatch, command):
    Path("killer.py").write_text(KILLER)
    untouched = files()
    moved = [row["path"] for row in plan if row["action"] == "move"]
    applied = {f".digitdoodle-trash/1/{path}" if path in moved else path: data for path, data in untouched.items()}
    if command == ["--undo"]:
        run(capsys, "--apply", "plan.csv")
    Path("photos").rename("begun")
    for moment in count(1):
        shutil.copytree("begun", "photos")
        monkeypatch.setenv("KILL_AT", str(moment))
        process = start("audit", "photos", *command, "--import", "killer", module="retrieval")
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
        assert Counter(files().values()) == Counter(untouched.values())
        Path("photos").rename("killed")
        for way, goal in ((["--apply", "plan.csv"], applied), (["--undo"], untouched)):
            shutil.copytree("killed", "photos")
            run(capsys, *way)
            assert files() == goal
            shutil.rmtree("photos")
        shutil.rmtree("killed")
    assert moment > 20
