"""The model card of an export (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993)."""

import json
from pathlib import Path
from typing import Any

from datamodules.base import BaseDataModule
from lightning_modules.evaluation import Predictions
from lightning_modules.exported import ONNX, PROGRAM
from lightning_modules.reading import Readings

CLASSIFIER = """\
# {name}

An image classifier: {model}, {parameters:,} parameters, {accuracy:.2%} of its {count} validation images right.
Made with DigitDoodle.

## Use

    python -m lightning_modules predict --ckpt_path {name} --images PATH [PATH ...]

`predict` first brings pictures of digits into the form of the training images, as `normalizer` in `config.json` says,
if it is not null; to do so elsewhere, call `datamodules.normalizer.normalize`. The weights are in `model.safetensors`;
`config.json` has what is needed to build the network.
{programs}
## Classes and accuracy

| class | validation images | right |
|---|---|---|
{per_class}

Overall {accuracy:.2%} ({right} of {count}) of validation images that it was not trained on, but by which its epoch was
chosen.

"""

READER = """\
# {name}

A reader of numbers on pictures: {model}, {parameters:,} parameters, {accuracy:.2%} of its {count} validation lines read
without a mistake, {signs:.2%} of their signs. Made with DigitDoodle.

## Use

    python -m lightning_modules read --ckpt_path {name} PATH [PATH ...]

`read` finds the lines on a picture, as `datamodules.lines` does it, and hands them to the network: light ink on black,
32 pixels high. The weights are in `model.safetensors`; `config.json` has what is needed to build the network.
{programs}
"""

MADE = """\
## Confidence

Expected calibration error {ece_before:.4f}, and {ece:.4f} after temperature scaling by {temperature:.3f}, by which
scores are divided before softmax. Both are measured on the validation {images}, to which the temperature was fitted
too.

## Data

{data}; {train} training and {count} validation {images}, split by `split.csv`, copies on one side. Options:

```json
{data_options}
```

## Recipe

Best epoch {best_epoch} of {epochs}, {seconds:.0f} s on {device} in {precision}. Options:

```json
{options}
```

Versions: {versions}.

"""

CLASSIFIER_LIMITS = """\
## Intended use and limits

For images like those that it was trained on: one object of one of the {classes} classes, filling the frame in the same
way. `predict` says of pictures of strokes, as digits are, whether they show one of the classes at all; the score by
which it does is set so that 0.8 % of the validation images are refused. Accuracy on images from another source, another
pen or another camera isn't known; measure it before relying on it.

"""

READER_LIMITS = """\
## Intended use and limits

For numbers that are written by hand, in ink that stands out from its paper, side by side or below each other. Its signs
are {signs_read}. A confidence below 50 % is marked as doubtful. Accuracy on other hands, forms and cameras isn't
known; measure it before relying on it.

"""

CHECKS = """\
## Checks

Every exported form was run on all validation {images} and gives the network's own answer for each. Largest difference
of a probability: {differences}.
"""

PROGRAMS = """
| program | what it is |
|---|---|
{forms}

They take raw pixels, `images`: (batch, {channels}, {size}, {size}), uint8, {colour}, and give class
probabilities, (batch, {classes}), float32, in the order of the classes below. ONNX also gives scores, (batch,): below
0.5, a picture of strokes shows none of the classes. Resize photographs to {size}×{size}, antialiased; all else is part
of the programs.

```python
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
images = numpy.zeros((1, {channels}, {size}, {size}), numpy.uint8)
probabilities, score = session.run(None, {{"images": images}})
```
"""

READER_PROGRAMS = """\

| program | what it is |
|---|---|
{forms}

They take lines, `images`: (batch, {channels}, {size}, width), uint8, light ink on black, of any width from 8 on, and
give probabilities, (batch, columns, {outputs}), float32, of the blank and of each sign in each column: leave out
repetitions, then blanks.
"""


def write_model_card(
    path: Path,
    name: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    scored: Predictions | Readings,
    data: BaseDataModule,
    differences: dict[str, float],
) -> None:
    """Write the card as Markdown.

    Args:
        path: The file.
        name: What the export is called.
        config: What its ``config.json`` holds.
        summary: The run's ``summary.json``.
        scored: What the network says of the validation images.
        data: The images.
        differences: Largest difference of each exported form from the network.
    """
    assert data.train_set is not None
    _, channels, height, _ = config["input"]["shape"]
    signs = config["class_names"]
    facts: dict[str, Any] = {
        "name": name,
        "model": summary["model"],
        "parameters": summary["parameters"],
        "accuracy": summary["val_accuracy"],
        "right": summary["val_images"] - summary["val_mistakes"],
        "count": summary["val_images"],
        "classes": len(signs),
        "ece_before": config["expected_calibration_error_before"],
        "ece": config["expected_calibration_error"],
        "temperature": config["temperature"],
        "data": summary["data"],
        "train": len(data.train_set),
        "data_options": json.dumps(config["data_hparams"], indent=2, ensure_ascii=False),
        "best_epoch": summary["best_epoch"],
        "epochs": summary["epochs"],
        "seconds": summary["seconds"],
        "device": summary["device"],
        "precision": summary["precision"],
        "options": json.dumps(config["hyper_parameters"], indent=2, ensure_ascii=False),
        "versions": ", ".join(f"{package} {version}" for package, version in summary["versions"].items()),
        "differences": ", ".join(f"`{form}` {difference:.1e}" for form, difference in differences.items()),
        "channels": channels,
        "size": height,
    }
    if isinstance(scored, Readings):
        template, programs = (READER, MADE, READER_LIMITS, CHECKS), READER_PROGRAMS
        facts |= {
            "images": "lines",
            "signs": scored.sign_accuracy,
            "signs_read": ", ".join(signs),
            "outputs": scored.probabilities.shape[2],
        }
    else:
        template, programs = (CLASSIFIER, MADE, CLASSIFIER_LIMITS, CHECKS), PROGRAMS
        counts = zip(signs, scored.confusion.sum(dim=1).tolist(), scored.confusion.diag().tolist(), strict=True)
        facts |= {
            "images": "images",
            "colour": "grey" if channels == 1 else "RGB",
            "per_class": "\n".join(f"| {label} | {count} | {right / count:.2%} |" for label, count, right in counts),
        }
    written = {ONNX: "ONNX, batch size free", PROGRAM: "of `torch.export`, batch size free"}
    facts["forms"] = "\n".join(f"| `{form}` | {what} |" for form, what in written.items() if form in differences)
    facts["programs"] = programs.format(**facts) if len(differences) > 1 else ""
    text = "".join(template).format(**facts)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # folders need not be called in UTF-8
