"""The command line of retrieval; torch is imported only by what needs it."""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from datamodules.commands import add_import_option, run_command
from datamodules.errors import UserError
from datamodules.figures import check_figure, save_figure
from datamodules.imports import import_module_of
from datamodules.text import as_table, printable
from datamodules.writing import check_output, write_csv
from lightning_modules.embedded import EMBEDDED, READER

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Mapping
    from typing import Literal

    from retrieval.index import ImageIndex
    from retrieval.process_group import ProcessGroup
    from retrieval.query import Region
    from retrieval.stores.location import Location
    from retrieval.update import Update

    Commands = _SubParsersAction[argparse.ArgumentParser]

ENCODER_OPTIONS = ("encoder", "weights", "layer", "preprocessing", "precision", "device")
QUERY_IMAGES = "query_images"  # where a bare file name is looked up, here or beside the database
SIGNS = {"+": 1.0, "-": -1.0}  # between the images of a query
WORST = 5  # queries in the picture of `evaluate`


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    return run_command(_parser(), lambda options: options.command(options), args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m retrieval", description="Search a folder of images by image.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _common_options()
    for add in (_add_index, _add_query, _add_evaluate, _add_audit, _add_exchange, _add_serve):
        add(commands, common)
    return parser


def _add_index_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index",
        metavar="FILE|URL",
        help="where the index is kept (.digitdoodle.sqlite in the folder): another file, or a collection of Milvus, "
        "http://HOST:PORT/COLLECTION, with the token in the environment variable MILVUS_TOKEN",
    )


def _common_options() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    _add_index_option(common)
    add_import_option(common)
    encoder = common.add_argument_group("encoder (by default the one that made the index, else resnet50)")
    encoder.add_argument(
        "--encoder",
        metavar="NAME|CKPT|CLASS",
        help="resnet18, resnet34, resnet50, resnet101, resnet152, timm:NAME for any network of timm, a checkpoint or "
        "exported folder of `python -m lightning_modules`, digits for the network that comes with this, or a class of "
        "your own such as mynet.MyEncoder",
    )
    encoder.add_argument("--weights", metavar="FILE", help="state dict of the network (without it, downloaded once)")
    encoder.add_argument("--layer", help="avgpool, or the maps that are averaged instead, such as layer3")
    encoder.add_argument(
        "--preprocessing",
        choices=("weights", "plain"),
        help="resize and crop the centre as the weights were trained (default), or resize the whole image",
    )
    encoder.add_argument(
        "--precision",
        choices=("full", "bf16", "auto"),
        help="of a ResNet: full (default), bf16, which is faster where the CPU or GPU has it, or auto, which takes it "
        "there; all can search one index",
    )
    encoder.add_argument("--device", help="cpu, cuda, mps (default: cuda if there is one)")
    return common


def _add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def _add_index(commands: "Commands", common: argparse.ArgumentParser) -> None:
    index = commands.add_parser("index", parents=[common], help="create the index of a folder, or bring it up to date")
    index.add_argument("folder", type=Path, metavar="FOLDER")
    index.add_argument(
        "--on-unreadable",
        choices=("error", "skip"),
        default="error",
        help="whether images that can't be read make the command fail once all others are indexed (%(default)s); with "
        "--watch they are only reported",
    )
    index.add_argument(
        "--verify", action="store_true", help="read all files again, also those whose size and time are the same"
    )
    index.add_argument(
        "--crops",
        action="store_true",
        help="make a new index in which parts of images are found better: crops of each have vectors, too (five times "
        "the size, in a file alone)",
    )
    index.add_argument(
        "--storage",
        choices=("float32", "float16"),
        help="make a new index whose vectors are rounded to float16: half the size (default float32; in a file alone)",
    )
    index.add_argument("--watch", action="store_true", help="go on, and update it whenever the folder changes")
    _add_json_option(index)
    index.set_defaults(command=_index)


def _add_query(commands: "Commands", common: argparse.ArgumentParser) -> None:
    query = commands.add_parser("query", parents=[common], help="find the images that are most similar to others")
    query.add_argument(
        "queries",
        nargs="+",
        metavar="IMAGE",
        help=f"a file; a bare name is also looked up in {QUERY_IMAGES}/; A + B - C searches like A and B, unlike C",
    )
    query.add_argument(
        "--region",
        type=_region,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="search with this part of the image alone, in pixels",
    )
    query.add_argument("--database", type=Path, required=True, metavar="FOLDER", help="the folder to search")
    query.add_argument("-k", type=int, default=4, help="how many to find (%(default)s)")
    query.add_argument(
        "--max-distance",
        type=_max_distance,
        metavar="DISTANCE|auto",
        help="leave out what is further away, from 0 (copies) to 2; auto draws the distance beyond which an image is "
        "the closest by chance from the folder's own images",
    )
    query.add_argument("--label", help="look only among the images of this class folder")
    query.add_argument("--figure", type=Path, metavar="FILE", help="draw query and matches, such as matches.png")
    query.add_argument("--explain", action="store_true", help="show in the figure which regions made them similar")
    query.add_argument("--include-self", action="store_true", help="also find copies of the query")
    query.add_argument("--no-update", action="store_true", help="leave the index as it is")
    _add_json_option(query)
    query.set_defaults(command=_query)


def _add_evaluate(commands: "Commands", common: argparse.ArgumentParser) -> None:
    evaluate = commands.add_parser("evaluate", parents=[common], help="precision@k and mAP by class folder")
    evaluate.add_argument("folder", type=Path, metavar="FOLDER")
    evaluate.add_argument(
        "--queries",
        type=Path,
        metavar="FOLDER",
        help="query with these images, in class folders or named CLASS_…, not with each image of the folder itself",
    )
    evaluate.add_argument(
        "--recall",
        action="store_true",
        help="instead, how many of the closest images the index's own search finds, on a sample: 1 where it is exact",
    )
    evaluate.add_argument(
        "--foreign",
        type=Path,
        metavar="FOLDER",
        help="instead, how many of these images, to which nothing is similar, and of the folder's own find no match",
    )
    evaluate.add_argument("--figure", type=Path, metavar="FILE", help="draw the worst queries and what they find")
    _add_json_option(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _add_audit(commands: "Commands", common: argparse.ArgumentParser) -> None:
    audit = commands.add_parser("audit", parents=[common], help="duplicates, leaks between splits, doubtful labels")
    audit.add_argument("folder", type=Path, metavar="FOLDER")
    audit.add_argument("--split", type=Path, metavar="FILE", help="a split.csv, to look for leaks between its sides")
    audit.add_argument(
        "--threshold", type=float, help="distance below which images are near-duplicates (default: from the data)"
    )
    audit.add_argument("--output", type=Path, metavar="FILE", help="the findings (audit.csv)")
    audit.add_argument("--figure", type=Path, metavar="FILE", help="a contact sheet (audit.png)")
    audit.add_argument(
        "--keep",
        metavar="largest|sharpest|oldest|FOLDER",
        help="which of each group of duplicates the plan keeps (largest); FOLDER is one in the folder, relative to it",
    )
    clean_up = audit.add_mutually_exclusive_group()
    clean_up.add_argument("--plan", type=Path, metavar="FILE", help="also write which duplicates to keep and to move")
    clean_up.add_argument("--apply", type=Path, metavar="FILE", help="instead, move to the trash what a plan says")
    clean_up.add_argument(
        "--undo",
        type=int,
        nargs="?",
        const=0,
        metavar="NUMBER",
        help="instead, move back what the last --apply has moved, or the one of this number",
    )
    _add_json_option(audit)
    audit.set_defaults(command=_audit)


def _add_exchange(commands: "Commands", common: argparse.ArgumentParser) -> None:
    for name, command, what in (
        ("export", _export, "write the vectors, paths and labels of an index to a file"),
        ("import", _import, "make the index of a folder from such a file, without its encoder"),
    ):
        parser = commands.add_parser(name, help=what)
        parser.add_argument("folder", type=Path, metavar="FOLDER")
        parser.add_argument("file", type=Path, metavar="FILE.npz|FILE.parquet")
        _add_index_option(parser)
        parser.set_defaults(command=command)


def _add_serve(commands: "Commands", common: argparse.ArgumentParser) -> None:
    serve = commands.add_parser("serve", parents=[common], help="a page to search and recognise in the browser")
    serve.add_argument("folder", type=Path, metavar="FOLDER")
    serve.add_argument(
        "--checkpoint",
        type=Path,
        default=EMBEDDED,
        metavar="CKPT",
        help="a classifier of `python -m lightning_modules` to draw for (default: the digits' that comes with this)",
    )
    serve.add_argument(
        "--reader", type=Path, default=READER, metavar="CKPT", help="a reader of numbers (default: comes with this)"
    )
    serve.add_argument(
        "--corrections",
        type=Path,
        metavar="FOLDER",
        help="let people say what a picture shows in truth, and keep it there, in a folder per class, to learn from",
    )
    serve.add_argument(
        "--review",
        action="store_true",
        help="a tab to review duplicates as well, where whoever can use the page moves images to the trash folder",
    )
    serve.add_argument("--host", default="127.0.0.1", help="who can reach it (%(default)s: only this machine)")
    serve.add_argument("--port", type=_port, default=7860, help="(%(default)s)")
    access = serve.add_mutually_exclusive_group()
    access.add_argument("--auth", type=Path, metavar="FILE", help="who may use it: a line USER:PASSWORD for each")
    access.add_argument("--no-auth", action="store_true", help="let anyone use it who can reach it")
    update = serve.add_mutually_exclusive_group()
    update.add_argument("--no-update", action="store_true", help="leave the index as it is")
    update.add_argument("--watch", action="store_true", help="update the index whenever the folder changes")
    serve.set_defaults(command=_serve)


def _open(options: argparse.Namespace, folder: Path, group: "ProcessGroup | None" = None) -> "ImageIndex":
    """The index of a folder, with the encoder that was asked for, else the one that made it."""
    from datamodules.images import check_folder, find_images, no_images
    from retrieval.stores.base import MissingIndexError
    from retrieval.stores.location import find_location

    location = find_location(folder, options.index)

    def read_header() -> "Mapping[str, str] | None":
        check_folder(folder)
        try:
            with location.open() as store:
                return store.header
        except MissingIndexError:
            if group is None and (location.shared or getattr(options, "no_update", False)):  # nothing would make one
                raise
            if not find_images(folder):  # said before weights are read, or downloaded
                raise no_images(folder) from None
            return None

    # Before torch is imported: an index that can't be reached is reported at once.
    header = read_header() if group is None else group.share(read_header)
    from retrieval.encoders.registry import build_encoder, rebuild_encoder
    from retrieval.index import ImageIndex

    given = {name: getattr(options, name) for name in ENCODER_OPTIONS if getattr(options, name) is not None}
    if options.encoder is not None:
        _import_encoder(options.encoder)
    if header is not None and options.encoder is None:
        encoder = rebuild_encoder(header, **given)
    else:
        encoder = build_encoder(**given)
    return ImageIndex.open(folder, encoder, options.index) if group is None else ImageIndex(folder, encoder, location)


def _import_encoder(name: str) -> None:
    """Import the module of an encoder that is named by its class."""
    try:
        import_module_of(name, "--encoder")
    except UserError as error:
        module = name.rpartition(".")[0]
        raise UserError(
            f"--encoder {name}: no such file, nor is there a module {module} in the current folder or installed"
        ) from error


def _bring_up_to_date(index: "ImageIndex") -> None:
    """Update an index before it is read, and say so; go on with what there is if that can't be done at the moment.

    One on Milvus is left to `index`: whoever asks it may see other files than those who fill it.
    """
    from filelock import Timeout

    from retrieval.stores.location import ReadOnlyError

    if index.location.shared:
        return
    try:
        update = index.update(progress=True, wait=False)
    except Timeout:
        _say(f"{index.folder}: another process is updating the index; going on with what it has so far")
        return
    except ReadOnlyError as error:
        _say(f"{error}; going on with what the index has so far")
        return
    if update.encoded or update.known or update.removed:
        _say(f"{index.folder}: index brought up to date: {_counts(update)}")
        _tell_of_passed_over(index.folder)
    if update.errors:
        _say(f"{index.folder}: {len(update.errors)} files can't be read; `python -m retrieval index` lists them")


def _tell_of_passed_over(folder: Path) -> None:
    from datamodules.images import list_files, passed_over

    note = passed_over(folder, list_files(folder)[1])
    if note is not None:
        _say(printable(note))


def _counts(update: "Update") -> str:
    return (
        f"{update.encoded} encoded, {update.known} known by content, {update.unchanged} unchanged, "
        f"{update.removed} removed"
    )


def _index(options: argparse.Namespace) -> None:
    from retrieval.process_group import torchrun_group

    if options.watch:
        from retrieval.watching import check_watching

        check_watching()
    with torchrun_group() as group, _open(options, options.folder, group) as index:
        update = index.update(
            progress=True, group=group, verify=options.verify, crops=options.crops, storage=options.storage
        )
        if group.rank > 0:
            return
        _report(options, index.location, update)
        if options.watch:
            from retrieval.watching import watch

            watch(index, lambda update: _report(options, index.location, update), _say_error)


def _report(options: argparse.Namespace, location: "Location", update: "Update") -> None:
    """Say what an update of `index` has done, and which files it left out.

    Raises:
        UserError: Some can't be read, and that is to be an error.
    """
    _tell_of_passed_over(options.folder)
    if options.json:
        print(json.dumps({**vars(update), "index": str(location)}), flush=True)
    else:
        print(f"{printable(str(location))}: {_counts(update)}", flush=True)
    if update.errors:
        total = update.encoded + update.known + update.unchanged + len(update.errors)
        broken = "\n  ".join(printable(error) for error in update.errors)
        message = f"{len(update.errors)} of {total} files can't be read, the others are indexed"
        if options.on_unreadable == "error" and not options.watch:
            raise UserError(f"{message}; repair or remove them, or pass --on-unreadable skip:\n  {broken}")
        _say(f"{message}:\n  {broken}")


def _query(options: argparse.Namespace) -> None:
    if options.explain and options.figure is None:
        raise UserError("--explain draws on the figure: name it with --figure FILE")
    if options.figure is not None:
        _check_figure(options.figure, options.database)
    if options.region is not None and len(options.queries) > 1:
        raise UserError("--region is a part of one image: leave the others out")
    named = _find_queries(options.queries, options.database)
    with _open(options, options.database) as index:
        if not options.no_update:
            _bring_up_to_date(index)
        from retrieval.query import Example, describe

        queries = [[Example(path, options.region, weight) for path, weight in query] for query in named]
        results = index.search_many(queries, options.k, options.include_self, options.label, options.max_distance)
        reach = index.match_distance if options.max_distance == "auto" else options.max_distance
    for query, matches in zip(queries, results, strict=True):
        name = describe(query)
        if options.json:
            for rank, match in enumerate(matches, 1):
                found = {"path": str(match.path), "distance": match.distance, "label": match.label}
                _print_json({"query": name, "rank": rank, **found})
        elif not matches and reach is not None:
            print(f"{printable(name)}: nothing similar (no image within {reach:.3f})")
        else:
            print(f"{printable(name)}:")
            print(as_table([("distance", "label", "path"), *((m.distance, m.label, m.path) for m in matches)]))
    if options.figure is not None:
        from retrieval.plots import plot_results

        pairs = list(zip(queries, results, strict=True))
        save_figure(plot_results(pairs, index.encoder if options.explain else None), options.figure)


def _check_figure(path: Path, folder: Path) -> None:
    """Refuse a place where no picture can stand, or where it would be an image of the folder from then on."""
    from datamodules.formats import EXTENSIONS
    from datamodules.images import has_content

    check_figure(path)
    place, root = path.resolve(), folder.resolve()
    found = place.is_relative_to(root) and all(map(has_content, place.relative_to(root).parts))
    if found and place.suffix.lower() in EXTENSIONS:
        raise UserError(f"{path}: would be one of the images that are searched; name another place with --figure")


def _max_distance(text: str) -> "float | Literal['auto']":
    if text == "auto":
        return "auto"
    try:
        distance = float(text)
    except ValueError:
        distance = math.nan
    if not 0 <= distance <= 2:
        raise argparse.ArgumentTypeError(f"a distance from 0 to 2, or auto, not {text}")
    return distance


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port from 1 to 65535, not {text}")
    return int(text)


def _region(text: str) -> "Region":
    from retrieval.query import parse_region

    try:
        return parse_region(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _find_queries(words: list[str], database: Path) -> list[list[tuple[Path, float]]]:
    """The queries of a command line: each one image and its weight, or several with + and - between them."""
    queries: list[list[tuple[Path, float]]] = []
    before = ""
    for place, word in enumerate(words):
        if word in SIGNS:
            if place in (0, len(words) - 1) or before in SIGNS:
                raise UserError(f"{' '.join(words)}: a {word} stands between two images")
        else:
            if before not in SIGNS:
                queries.append([])
            queries[-1].append((_find_query(word, database), SIGNS.get(before, 1.0)))
        before = word
    return queries


def _find_query(name: str, database: Path) -> Path:
    path = Path(name)
    places = [path]
    if path.name == name:
        places += [folder / name for folder in _query_folders(database)]
    for place in places:
        if place.exists():
            return place
    raise UserError(f"no such image: {', '.join(printable(str(place)) for place in places)}")


def _query_folders(database: Path) -> list[Path]:
    """Where query images may lie: here, and beside the database."""
    places = [Path(QUERY_IMAGES), database.absolute().parent / QUERY_IMAGES]
    return places[:1] if places[0].absolute() == places[1] else places


def _evaluate(options: argparse.Namespace) -> None:
    from datamodules.images import find_images, no_images
    from retrieval.evaluation import rank_queries, read_queries, recall, refusals, summarise

    if options.recall and (options.queries is not None or options.figure is not None or options.foreign is not None):
        raise UserError("--recall takes its queries from the index and draws nothing: leave the others out")
    if options.foreign is not None and (options.queries is not None or options.figure is not None):
        raise UserError("--foreign counts what finds no match and draws nothing: leave --queries and --figure out")
    foreign = [] if options.foreign is None else find_images(options.foreign)
    if options.foreign is not None and not foreign:
        raise no_images(options.foreign)
    if options.figure is not None:
        _check_figure(options.figure, options.folder)
    with _open(options, options.folder) as index:
        _bring_up_to_date(index)
        records, matrix = index.store.vectors()
        if options.recall or foreign:
            found = refusals(index, foreign) if foreign else recall(index.store, matrix)
            if options.json:
                _print_json(found)
            else:
                print(as_table([found, found.values()]))
            return
        if "crops" in index.store.header:
            _say("scores are of whole images: crops, which a query searches as well, don't count")
        if options.queries is None:
            folder, rankings = options.folder, rank_queries(records, matrix)
        else:
            classes = {record.label for record in records if record.label is not None}
            folder = options.queries
            rankings = rank_queries(records, matrix, *read_queries(folder, classes, index.encoder))
        _print_scores(summarise(rankings), options.json)
        if options.figure is not None:
            from retrieval.index import Match
            from retrieval.plots import plot_results

            worst = sorted(rankings, key=lambda ranking: ranking.average_precision)[:WORST]
            drawn = [
                (folder / one.name, [Match(options.folder / hit.path, hit.distance, hit.label) for hit in one.closest])
                for one in worst
            ]
            save_figure(plot_results(drawn), options.figure)


def _print_scores(table: "Mapping[str, Mapping[str, float]]", as_json: bool) -> None:
    if as_json:
        for name, row in table.items():
            _print_json({"class": name, **row})
    else:
        print(as_table([("class", *table["all"]), *((name, *row.values()) for name, row in table.items())]))


def _audit(options: argparse.Namespace) -> None:
    if options.keep is not None and options.plan is None:
        raise UserError("--keep chooses for a plan: name it with --plan FILE")
    if options.apply is not None or options.undo is not None:
        _clean_up(options)
        return
    from dataclasses import fields

    from tqdm import tqdm

    from datamodules.splits import read_rows
    from retrieval.audit import Finding, audit
    from retrieval.cleanup import MOVE, check_keep, find_groups, make_plan, write_plan
    from retrieval.plots import plot_findings

    output, sheet = options.output or Path("audit.csv"), options.figure or Path("audit.png")
    check_output(output)
    _check_figure(sheet, options.folder)
    keep = options.keep or "largest"
    if options.plan is not None:
        check_output(options.plan)
        check_keep(options.folder, keep)
    subsets = None
    if options.split is not None:
        subsets = {name: subset for name, (_, subset) in read_rows(options.split).items()}
    with _open(options, options.folder) as index:
        _bring_up_to_date(index)
        records, matrix = index.store.vectors()
    if subsets is not None and not any(record.path in subsets for record in records):
        raise UserError(f"{options.split}: names none of the images in {options.folder}")
    with tqdm(total=len(records), desc="Comparing", unit="img", delay=1, leave=False) as bar:
        findings, threshold = audit(records, matrix, subsets, options.threshold, bar.update)
    rows = [[field.name for field in fields(Finding)], *(vars(finding).values() for finding in findings)]
    write_csv(output, rows)
    if options.json:
        for finding in findings:
            _print_json(vars(finding))
    else:
        print(as_table(rows))
    if options.plan is not None:
        groups = tqdm(find_groups(records, findings), desc="Choosing", unit="group", delay=1, leave=False)
        plan = make_plan(options.folder, records, matrix, groups, threshold, keep)
        write_plan(options.plan, plan)
        moved = [row.bytes for row in plan if row.action == MOVE]
        _say(f"{options.plan}: moves {len(moved)} of {len(plan)} images, {sum(moved) / 1e6:.1f} MB; look it through")
    save_figure(plot_findings(options.folder, findings), sheet)
    _say(f"{len(records)} images; near-duplicates are closer than {threshold:.4f}")
    _say(f"written: {output}, {sheet}")


def _export(options: argparse.Namespace) -> None:
    from datamodules.images import check_folder
    from retrieval.exchange import check_suffix, export_index
    from retrieval.stores.base import MissingIndexError
    from retrieval.stores.location import find_location, no_index

    check_suffix(options.file)
    check_output(options.file)
    check_folder(options.folder)
    location = find_location(options.folder, options.index)
    try:
        with location.open() as store:
            count = export_index(store, options.file)
    except MissingIndexError as error:
        raise no_index(options.folder, location) from error
    _say(f"written: {printable(str(options.file))}, {count} images")


def _import(options: argparse.Namespace) -> None:
    from datamodules.images import check_folder
    from retrieval.exchange import import_index
    from retrieval.stores.location import find_location

    check_folder(options.folder)
    location = find_location(options.folder, options.index)
    count = import_index(options.file, location)
    print(f"{printable(str(location))}: {count} images; `python -m retrieval index` compares them with the folder")


def _clean_up(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from datamodules.images import check_folder
    from retrieval.cleanup import apply_plan, locked, undo
    from retrieval.stores.location import find_location

    folder: Path = options.folder
    of_an_audit = ("split", "threshold", "output", "figure", *ENCODER_OPTIONS)
    if given := [f"--{name}" for name in of_an_audit if getattr(options, name) is not None]:
        raise UserError(f"--apply and --undo look for nothing, they move files: leave {', '.join(given)} out")
    check_folder(folder)
    errors: list[str] = []
    with locked(folder, find_location(folder, options.index)):
        if options.apply is not None:
            with tqdm(desc="Checking", unit="img", delay=1, leave=False) as bar:
                clean_up, moved = apply_plan(folder, options.apply, bar.update)
        else:
            clean_up, moved, errors = undo(folder, options.undo)
    trash = None if clean_up is None else str(clean_up.place)
    if options.json:
        _print_json({"moved": moved, "trash": trash})
    elif trash is None:
        print(f"{printable(str(folder))}: nothing to move")
    else:
        print(f"{printable(trash)}: {moved} images moved {'back' if options.apply is None else 'here'}")
    if errors:
        raise UserError(f"{len(errors)} images could not be moved back:\n  " + "\n  ".join(map(printable, errors)))


def _serve(options: argparse.Namespace) -> None:
    from retrieval.app.uploads import private_uploads

    with private_uploads():
        _serve_page(options)


def _serve_page(options: argparse.Namespace) -> None:
    # Read when torch is imported: its threads don't spin while they wait, since the server needs the cores as well.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import gradio  # noqa: F401
        import limits  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f'serve needs {error.name}: pip install ".[app]" in the clone') from error
    for path in (options.checkpoint, options.reader):
        if not path.exists():  # said before the folder is indexed
            raise UserError(f"{path}: no such file or folder")
    from lightning_modules.checkpoint import load_network
    from lightning_modules.networks.line_reader import LineReader
    from retrieval.app.batching import BatchingEncoder
    from retrieval.app.corrections import Corrections
    from retrieval.app.page import build_page
    from retrieval.app.recognition import Recogniser
    from retrieval.app.search_tab import find_samples
    from retrieval.app.server import check_address, is_loopback, read_users, serve
    from retrieval.index import ImageIndex
    from retrieval.stores.location import find_location
    from retrieval.watching import check_watching, watch

    if options.watch:
        check_watching()
        if find_location(options.folder, options.index).shared:
            raise UserError("an index on Milvus is filled by `index`: pass --watch to it, not to serve")
    if not is_loopback(options.host) and options.auth is None and not options.no_auth:
        raise UserError(
            f"{options.host} can be reached by others: say who may use the page with --auth FILE, or --no-auth"
        )
    users = None if options.auth is None else read_users(options.auth)
    check_address(options.host, options.port)
    with _open(options, options.folder) as index:
        if not options.no_update:
            _bring_up_to_date(index)
        # Last, since it computes in the background: torchvision's tracing of the encoder allows no other thread in.
        recogniser = Recogniser(options.checkpoint)
        shared = ImageIndex(index.folder, BatchingEncoder(index.encoder), index.location, index.store)
        samples = [path for place in _query_folders(options.folder) for path in find_samples(place)]
        corrections = None
        if options.corrections is not None:
            own = None if options.checkpoint == EMBEDDED else options.checkpoint
            corrections = Corrections(options.corrections, recogniser.class_names, own)
        page = build_page(
            shared, recogniser, samples, load_network(options.reader, LineReader), corrections, options.review
        )
        show = is_loopback(options.host) and sys.stdout.isatty()
        if options.watch:
            Thread(target=watch, args=(shared, _say_update, _say_error), name="watch", daemon=True).start()
        address = serve(page, options.host, options.port, users, show)
        print(f"serving {printable(str(options.folder))} on {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def _say_update(update: "Update") -> None:
    _say(f"index brought up to date: {_counts(update)}")
    for error in update.errors:
        _say(printable(error))


def _say_error(error: UserError) -> None:
    _say(f"error: {printable(str(error))}")


def _print_json(row: dict[str, Any]) -> None:
    print(json.dumps(row))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
