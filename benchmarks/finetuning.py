"""Fine-tuning MobileNetV2: a frozen epoch at 224 pixels, and the way to 99.36 %."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.data import digit_folder
from benchmarks.harness import Finished, Measurement, Options, has, say
from benchmarks.training import GOALS, bare_epoch, count_images, epoch_seconds, on_folder, ours, peer, seconds_to
from lightning_modules.networks.mobilenetv2 import MobileNetV2

SHARE = 4  # one in so many images makes a frozen epoch long enough to be measured
REFERENCE_EPOCHS = 5


def run(options: Options) -> list[Measurement]:
    """Seconds and peak memory of a frozen epoch; seconds to 99.36 % against the reference's first five epochs."""
    epochs = 1 if options.smoke else 2
    measured: dict[str, list[Finished]] = {}
    recipe: list[Finished] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = digit_folder(options, scratch)
        weights = "null" if options.data is None else str(options.data / "weights" / "mobilenetv2_100.pth")
        fewer = _every(SHARE, folder, scratch / "fewer")
        frozen = on_folder("", fewer, "--model.weights", weights, "--trainer.max_epochs", f"{epochs}")
        if options.smoke:
            frozen += ["--model.input_size", "32"]
        contestants: dict[str, Callable[[], Finished]] = {
            "ours": partial(ours, "mobilenetv2_frozen", options, scratch, *frozen)
        }
        if not options.smoke:
            contestants["plain timm + Lightning"] = partial(
                peer, "plain_lightning", "mobilenetv2", fewer, options, epochs
            )
            if has("keras"):
                contestants["Keras"] = partial(peer, "keras_reference", "mobilenetv2", fewer, options, epochs)
        network = MobileNetV2(
            ["0", "1", "2"], 1, 100, weights=None, input_size=32 if options.smoke else None, unfreeze_at=None
        )
        for turn in range(options.repeats):
            for name, contestant in contestants.items():
                say(f"fine-tuning: {name}, turn {turn + 1} of {options.repeats}")
                measured.setdefault(name, []).append(contestant())
            if not options.smoke:
                say(f"fine-tuning: our recipe, turn {turn + 1} of {options.repeats}")
                args = on_folder("", folder, "--model.weights", weights, "--seed_everything", f"{turn + 1}")
                recipe.append(ours("mobilenetv2", options, scratch, *args, until=GOALS[-1]))
            alone.append(bare_epoch(network, count_images(fewer), options))
    results = [
        Measurement(
            f"a frozen MobileNetV2 epoch at 224 pixels over one in {SHARE} images",
            "s",
            {name: [epoch_seconds(run) for run in runs] for name, runs in measured.items()}
            | {"the network alone": alone},
        ),
        Measurement(
            "peak memory of that training",
            "MB",
            {name: [run.peak_mb for run in runs] for name, runs in measured.items()},
        ),
    ]
    if recipe:
        five = {
            f"{REFERENCE_EPOCHS} epochs of {name}": [REFERENCE_EPOCHS * SHARE * epoch_seconds(run) for run in runs]
            for name, runs in measured.items()
            if name != "ours"
        }
        results.append(
            Measurement(
                "training to 99.36 % of the validation digits by our recipe",
                "s",
                {"ours": [_training_seconds(run, GOALS[-1]) for run in recipe], **five},
                "without starting up, on either side",
            )
        )
    return results


def _every(share: int, folder: Path, fewer: Path) -> Path:
    """A folder with one image in so many, of all classes."""
    for path in sorted(folder.glob("*/*.png"))[::share]:
        (fewer / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, fewer / path.parent.name / path.name)
    return fewer


def _training_seconds(finished: Finished, accuracy: float) -> float:
    start = finished.rows[0]["seconds"] - finished.rows[0]["epoch_seconds"]
    return seconds_to(finished, accuracy) - start
