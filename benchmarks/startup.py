"""How long the commands take before they work."""

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.data import photo_folder
from benchmarks.harness import Measurement, Options, has, in_turn, run_process

FORWARD = """
import torch, torchvision
with torch.device("meta"): network = torchvision.models.resnet18().eval()
network.load_state_dict(torch.load({weights!r}, weights_only=True), assign=True)
with torch.inference_mode(): network(torch.zeros(1, 3, 224, 224))
"""


def run(options: Options) -> list[Measurement]:
    """Whole processes against the imports that they can't do without."""
    import torch
    from torchvision.models import resnet18

    def seconds(*args: str) -> float:
        return run_process(list(args), options.threads).seconds

    searching = Measurement("`python -m retrieval --help`", "s")
    in_turn(
        searching,
        {
            "ours": lambda: seconds("-m", "retrieval", "--help"),
            # `-m` imports runpy; argparse locale and shutil, for the language and the width of the terminal.
            "imports": lambda: seconds("-c", "import argparse, json, locale, pathlib, runpy, shutil, typing"),
        },
        options.repeats,
    )
    answering = Measurement("`python -m lightning_modules predict --images FILE`, by the package's network", "s")
    with tempfile.TemporaryDirectory() as directory:
        picture = Path(directory) / "digit.png"
        Image.fromarray(load_digits().images[0].astype("uint8") * 15).save(picture)
        predict = ("-m", "lightning_modules", "predict", "--images", str(picture))
        if has("onnxruntime", "dev"):
            in_turn(
                answering,
                {
                    "ours": lambda: seconds(*predict),
                    "by PyTorch": lambda: seconds(*predict, "--trainer.accelerator", "cpu"),
                    "imports": lambda: seconds("-c", "import scipy.ndimage, PIL.Image, onnxruntime, tqdm"),
                },
                1 if options.smoke else options.repeats,
            )
    if options.smoke:  # starting each of the others takes seconds
        return [searching, answering]
    training = Measurement("`python -m lightning_modules --help`", "s")
    in_turn(
        training,
        {
            "ours": lambda: seconds("-m", "lightning_modules", "--help"),
            "imports": lambda: seconds(
                "-c",
                "import torch, torchvision, lightning.pytorch.cli, timm, torchmetrics, matplotlib.figure, "
                "lightning.pytorch.loggers, tensorboard",
            ),
        },
        options.repeats,
    )
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = photo_folder(options, scratch, 500)
        weights = str(scratch / "resnet18.pth")
        torch.save(resnet18().state_dict(), weights)
        run_process(
            ["-m", "retrieval", "index", str(folder), "--encoder", "resnet18", "--weights", weights], options.threads
        )
        query = str(next(iter(sorted(folder.glob("*.jpg")))))
        cold = Measurement("a cold query over 500 photographs, ResNet-18", "s")
        in_turn(
            cold,
            {
                "ours": lambda: seconds("-m", "retrieval", "query", query, "--database", str(folder)),
                "imports, weights and one forward pass": lambda: seconds("-c", FORWARD.format(weights=weights)),
            },
            options.repeats,
        )
    return [training, searching, answering, cold]
