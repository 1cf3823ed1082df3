"""Export a run for use elsewhere: ``python -m lightning_modules.export RUN FOLDER``."""

import argparse
import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from datamodules.base import BaseDataModule
from datamodules.commands import add_import_option, run_command
from datamodules.dataset import BatchDataset
from datamodules.errors import UserError
from datamodules.loading import batches
from lightning_modules.assessment import score
from lightning_modules.checkpoint import load_network, read_checkpoint
from lightning_modules.evaluation import Predictions
from lightning_modules.exported import (
    CONFIG,
    IMAGES,
    ONNX,
    PROBABILITIES,
    PROGRAM,
    SCORE,
    WEIGHTS,
    ExportedNetwork,
    read_config,
)
from lightning_modules.model_card import write_model_card
from lightning_modules.network import Network
from lightning_modules.reading import Readings
from lightning_modules.run import Run

CARD = "README.md"
LENGTHS, LEAST = {"batch": 2, "width": 160}, {"width": 8}  # of free axes: in the example, and what can be asked for
Form = Callable[[Tensor], Tensor]  # raw pixels to class probabilities
FILES = {WEIGHTS, CONFIG, PROGRAM, ONNX, CARD}


class Probabilities(nn.Module):
    """Raw pixels to probabilities: preprocessing, network, temperature, softmax.

    Args:
        network: The network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, K) of a classifier, (B, T, K + 1) of a reader, float32."""
        return self.network.probabilities(images)


class Answers(nn.Module):
    """Raw pixels to all that is said of them.

    Args:
        network: The network.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W), uint8 -> the values of ``Network.answers``."""
        return tuple(self.network.answers(images).values())


def is_replaceable(folder: Path) -> bool:
    """Whether a folder is empty, or holds an earlier export and no more."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if not names:
        return True
    with contextlib.suppress(UserError):
        read_config(folder)  # it may hold files of the same names by others
        return names <= FILES
    return False


def export(
    run: Run, folder: Path, root: Path | None = None, weights_only: bool = False, compact: bool = False
) -> dict[str, float]:
    """Export a run's best checkpoint and check every exported form against the network itself.

    Writes ``model.safetensors`` (weights), ``model.pt2`` (a ``torch.export`` program), ``model.onnx``,
    ``config.json`` and a model card. Programs take (B, C, S, S) uint8 pixels, any B, and give (B, K) probabilities;
    ONNX also gives (B,) scores, of which those below 0.5 show none of the classes. Those of a reader take (B, 1, 32, W)
    and give (B, W / 4, K + 1), of the blank and of each sign in each column.

    Args:
        run: The run.
        folder: Where to export to; made, or replaced if it is an earlier export.
        root: Where the images that it was trained on are now; None looks where they were.
        weights_only: Leave the programs out.
        compact: Leave ``model.pt2`` out, and the weights out of ``model.onnx``, which takes them from
            ``model.safetensors`` beside it.

    Returns:
        For each file the largest difference of a probability from the network's own on the validation images.

    Raises:
        UserError: The run isn't finished, its data are missing, its network gives no finite probabilities, the folder
            holds something else, or the packages of the ``export`` extra are missing.
    """
    if folder.exists() and not is_replaceable(folder):
        raise UserError(f"{folder}: holds something that is not an export; name another folder")
    for package in () if weights_only else ("onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(f'{package} is missing, which ONNX needs: pip install ".[export]" in the clone')
    summary = run.summary
    model = load_network(run.best, Network)
    data = run.load_data(root)
    try:
        expected = score(model, data)
    except UserError as error:
        raise UserError(f"{run.best}: {error}") from error
    config = describe(run.best, model, data, expected)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        new = Path(aside) / folder.name
        new.mkdir()
        described = {key: json.dumps(config[key]) for key in ("class_names", "input", "temperature")}
        forms = write_weights(model, config, described, new)
        if not weights_only:
            forms |= {} if compact else write_program(model, config, described, new)
            forms |= write_onnx(model, config, described, new, compact)
        assert data.val_set is not None
        differences = {name: largest_difference(form, data.val_set, expected) for name, form in forms.items()}
        write_model_card(new / CARD, folder.resolve().name, config, summary, expected, data, differences)
        if folder.exists():
            folder.rename(Path(aside) / "replaced")
        new.rename(folder)
    return differences


def describe(checkpoint: Path, model: Network, data: BaseDataModule, scored: Predictions | Readings) -> dict[str, Any]:
    """What ``config.json`` holds: enough to build the network again, and to feed it."""
    read = read_checkpoint(checkpoint)
    assert data.val_set is not None
    _, channels, height, width = data.val_set.batch([0]).images.shape
    shape: list[int | str] = ["batch", channels, height, width]
    outputs: dict[str, list[int | str]] = {PROBABILITIES: ["batch", len(model.class_names)], SCORE: ["batch"]}
    if isinstance(scored, Readings):
        shape[3] = "width"
        outputs = {PROBABILITIES: ["batch", "columns", len(model.class_names) + 1]}
    before, after = scored.calibration_errors
    return {
        "model_class": read["model_class"],
        "hyper_parameters": read["hyper_parameters"],
        "data_class": read["data_class"],
        "data_hparams": read["data_hparams"],
        "class_names": model.class_names,
        "normalizer": read.get("normalizer"),
        "input": {"dtype": "uint8", "shape": shape},
        "outputs": outputs,
        "temperature": model.calibration.temperature.item(),
        "expected_calibration_error_before": before,
        "expected_calibration_error": after,
    }


def write_weights(model: Network, config: dict[str, Any], described: dict[str, str], folder: Path) -> dict[str, Form]:
    """Write the weights and ``config.json``; returns the network that is built from them."""
    model.to(memory_format=torch.contiguous_format)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, {"format": "pt", **described}))  # save_file would make it private
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {WEIGHTS: load_network(folder, Network).probabilities}


def trace(network: nn.Module, config: dict[str, Any]) -> tuple[torch.export.ExportedProgram, tuple[Tensor]]:
    """The ``torch.export`` program of a network that takes images, and an example of these."""
    shape = config["input"]["shape"]
    example = torch.zeros([LENGTHS.get(size, size) for size in shape], dtype=torch.uint8)
    free = {axis: torch.export.Dim(size, min=LEAST.get(size)) for axis, size in enumerate(shape) if size in LENGTHS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of torch
        return torch.export.export(network.eval(), (example,), dynamic_shapes={IMAGES: free}), (example,)


def write_program(model: Network, config: dict[str, Any], described: dict[str, str], folder: Path) -> dict[str, Form]:
    """Write the ``torch.export`` program; returns it as it is read from its file."""
    program, _ = trace(Probabilities(model), config)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine
    torch.export.save(program, folder / PROGRAM, extra_files=described)
    return {PROGRAM: run_program(folder)}


def write_onnx(
    model: Network, config: dict[str, Any], described: dict[str, str], folder: Path, compact: bool
) -> dict[str, Form]:
    """Write an ONNX program with its free axes named, and with what is needed to feed it as metadata.

    Args:
        model: The network.
        config: What ``config.json`` holds.
        described: The metadata: JSON by name.
        folder: Where the weights and ``config.json`` are.
        compact: Let it take the weights from their file.

    Returns:
        The program as it is read from its file.
    """
    import onnx

    program, example = trace(Answers(model), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of torch's exporter
        written = torch.onnx.export(
            program,
            example,
            input_names=[IMAGES],
            output_names=list(config["outputs"]),
            dynamo=True,
            optimize=not compact,  # which folds some weights into others
            verbose=False,
        )
    assert written is not None
    proto = written.model_proto
    graph = proto.graph
    del graph.value_info[:]  # the shapes of what lies between, with the exporter's own names
    shapes = (config["input"]["shape"], *config["outputs"].values())
    for value, shape in zip((*graph.input, *graph.output), shapes, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
    # Stack traces of the exporter, with the paths of this machine.
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    onnx.helper.set_model_props(proto, described)
    onnx.checker.check_model(proto, full_check=True)
    if compact:
        share_weights(proto, folder / WEIGHTS)
    (folder / ONNX).write_bytes(proto.SerializeToString())
    return {ONNX: run_onnx(folder)}


def share_weights(model: Any, weights: Path) -> None:
    """Let an ONNX program, an ``onnx.ModelProto``, take its tensors from a safetensors file beside it.

    Such a file has the length of its header in eight bytes, the header, which is JSON, and the tensors as they are in
    memory (https://huggingface.co/docs/safetensors): what ONNX calls external data.
    """
    from onnx.external_data_helper import set_external_data

    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    places = json.loads(data[8:start])
    for tensor in model.graph.initializer:
        first, last = places.get(tensor.name.removeprefix("network."), {}).get("data_offsets", (0, 0))
        if first < last and tensor.raw_data == data[start + first : start + last]:
            set_external_data(tensor, weights.name, offset=start + first, length=last - first)
            tensor.ClearField("raw_data")


def run_program(folder: Path) -> Form:
    """The ``torch.export`` program."""
    program: Form = torch.export.load(folder / PROGRAM).module()
    return program


def run_onnx(folder: Path) -> Form:
    """The ONNX program, run by onnxruntime."""
    network = ExportedNetwork(folder)
    return lambda images: torch.from_numpy(network(images.numpy())[PROBABILITIES])


def largest_difference(form: Form, dataset: BatchDataset, expected: Predictions | Readings) -> float:
    """Run one form over a dataset; returns the largest difference of a probability.

    Raises:
        UserError: It gives another class for an image, or for a column of a line.
    """
    with torch.inference_mode():
        found = torch.cat([form(batch.images) for batch in batches(dataset, 64)])
    if not torch.equal(found.argmax(dim=-1), expected.probabilities.argmax(dim=-1)):
        raise UserError("an exported form gives another answer for a validation image; nothing is exported")
    return (found - expected.probabilities).abs().max().item()


def main(args: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.export", description="Export a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/mobilenetv2/version_0")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to export to, such as DigitDoodleNet")
    parser.add_argument(
        "--data.root",
        type=Path,
        dest="root",
        metavar="FOLDER",
        help="where the images that it was trained on are now (default: where they were)",
    )
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--weights_only", action="store_true", help="leave the programs out (.onnx and .pt2)")
    less.add_argument(
        "--compact",
        action="store_true",
        help="leave the .pt2 out, and let the .onnx take its weights from the .safetensors beside it",
    )
    add_import_option(parser)

    def command(options: argparse.Namespace) -> None:
        differences = export(Run(options.run), options.folder, options.root, options.weights_only, options.compact)
        config = read_config(options.folder)
        for name, difference in differences.items():
            print(f"{name:<18} largest difference of a probability {difference:.1e}")
        before, after = config["expected_calibration_error_before"], config["expected_calibration_error"]
        print(f"calibration error  {before:.4f}, after temperature {config['temperature']:.3f}: {after:.4f}")
        print(f"exported to        {options.folder}")

    return run_command(parser, command, args)
