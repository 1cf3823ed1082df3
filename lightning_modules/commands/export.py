"""Export a run for use elsewhere: ``python -m lightning_modules.export RUN FOLDER``."""

import argparse
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
from lightning_modules.checkpoint import CONFIG, load_network, read_checkpoint, read_config
from lightning_modules.evaluation import Predictions
from lightning_modules.model_card import write_model_card
from lightning_modules.network import Network
from lightning_modules.reading import Readings
from lightning_modules.run import Run
from lightning_modules.weights import WEIGHTS

PROGRAM, ONNX, CARD = "model.pt2", "model.onnx", "README.md"
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


def export(run: Run, folder: Path, root: Path | None = None, weights_only: bool = False) -> dict[str, float]:
    """Export a run's best checkpoint and check every exported form against the network itself.

    Writes ``model.safetensors`` (weights), ``model.pt2`` (a ``torch.export`` program), ``model.onnx``,
    ``config.json`` and a model card. Programs take (B, C, S, S) uint8 pixels, any B, and give (B, K) probabilities;
    those of a reader take (B, 1, 32, 160) and give (B, 40, K + 1), of the blank and of each sign in each column.

    Args:
        run: The run.
        folder: Where to export to; made, or replaced if it is an earlier export.
        root: Where the images that it was trained on are now; None looks where they were.
        weights_only: Leave the programs out.

    Returns:
        For each file the largest difference of a probability from the network's own on the validation images.

    Raises:
        UserError: The run isn't finished, its data are missing, its network gives no finite probabilities, the folder
            holds something else, or the packages of the ``export`` extra are missing.
    """
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= FILES):
        raise UserError(f"{folder}: holds something that is not an export; name another folder")
    for package in () if weights_only else ("onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(f"{package} is missing, which ONNX needs: pip install 'digitdoodle[export]'")
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
            forms |= write_programs(model, config["input"]["shape"][1:], described, new)
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
    shape = data.val_set.batch([0]).images.shape
    before, after = scored.calibration_errors
    return {
        "model_class": read["model_class"],
        "hyper_parameters": read["hyper_parameters"],
        "data_class": read["data_class"],
        "data_hparams": read["data_hparams"],
        "class_names": model.class_names,
        "normalizer": read.get("normalizer"),
        "input": {"dtype": "uint8", "shape": ["batch", *shape[1:]]},
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


def write_programs(model: Network, shape: list[int], described: dict[str, str], folder: Path) -> dict[str, Form]:
    """Write the programs for images of a shape, (C, H, W); returns each as it is read from its file."""
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    network = Probabilities(model).eval()
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of torch and its ONNX exporter
        program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # with the paths of this machine
        torch.export.save(program, folder / PROGRAM, extra_files=described)
        written = torch.onnx.export(
            program,
            (example,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamo=True,
            verbose=False,
        )
    assert written is not None
    write_onnx(written.model_proto, described, folder / ONNX)
    return {PROGRAM: run_program(folder), ONNX: run_onnx(folder)}


def write_onnx(model: Any, described: dict[str, str], path: Path) -> None:
    """Write an ONNX program with its batch axis named, and with what is needed to feed it as metadata.

    Args:
        model: The program, an ``onnx.ModelProto`` with one free axis, the first of its input.
        described: The metadata: JSON by name.
        path: The file.
    """
    import onnx

    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == symbol:
                dimension.dim_param = "batch"
    # Stack traces of the exporter, with the paths of this machine.
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, described)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def run_program(folder: Path) -> Form:
    """The ``torch.export`` program."""
    program: Form = torch.export.load(folder / PROGRAM).module()
    return program


def run_onnx(folder: Path) -> Form:
    """The ONNX program, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


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
    parser.add_argument("--weights_only", action="store_true", help="leave the programs out (.onnx and .pt2)")
    add_import_option(parser)

    def command(options: argparse.Namespace) -> None:
        differences = export(Run(options.run), options.folder, options.root, options.weights_only)
        config = read_config(options.folder)
        for name, difference in differences.items():
            print(f"{name:<18} largest difference of a probability {difference:.1e}")
        before, after = config["expected_calibration_error_before"], config["expected_calibration_error"]
        print(f"calibration error  {before:.4f}, after temperature {config['temperature']:.3f}: {after:.4f}")
        print(f"exported to        {options.folder}")

    return run_command(parser, command, args)
