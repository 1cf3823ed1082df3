"""The model card of an export (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993)."""

import json
from pathlib import Path
from typing import Any

from datamodules.dataset import ImageDataset
from lightning_modules.evaluation import Predictions

TEMPLATE = """\
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

## Confidence

Expected calibration error {ece_before:.4f}, and {ece:.4f} after temperature scaling by {temperature:.3f}, by which
scores are divided before softmax. Both are measured on the validation images, to which the temperature was fitted too.

## Data

{data}; {train} training and {count} validation images, split by `{split}`, copies on one side. Options:

```json
{data_options}
```

## Recipe

Best epoch {best_epoch} of {epochs}, {seconds:.0f} s on {device} in {precision}. Options:

```json
{options}
```

Versions: {versions}.

## Intended use and limits

For images like those that it was trained on: one object of one of the {classes} classes, filling the frame in the same
way. `predict` says of pictures of strokes, as digits are, whether they show one of the classes at all; the score by
which it does is set so that 0.8 % of the validation images are refused. Accuracy on images from another source, another
pen or another camera isn't known; measure it before relying on it.

## Checks

Every exported form was run on all validation images and gives the network's own class for each. Largest difference of
a probability: {differences}.
"""

PROGRAMS = """
| program | what it is |
|---|---|
| `model.onnx` | ONNX, batch size free |
| `model.pt2` | of `torch.export`, batch size free |

They take raw pixels, `images`: (batch, {channels}, {size}, {size}), uint8, {colour}, and give class
probabilities, (batch, {classes}), float32, in the order of the classes below. Resize photographs to {size}×{size},
antialiased; all else is part of the programs.

```python
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
images = numpy.zeros((1, {channels}, {size}, {size}), numpy.uint8)
(probabilities,) = session.run(None, {{"images": images}})
```
"""


def write_model_card(
    path: Path,
    name: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    predictions: Predictions,
    dataset: ImageDataset,
    differences: dict[str, float],
) -> None:
    """Write the card as Markdown.

    Args:
        path: The file.
        name: What the export is called.
        config: What its ``config.json`` holds.
        summary: The run's ``summary.json``.
        predictions: What is predicted of the validation images.
        dataset: The validation images.
        differences: Largest difference of each exported form from the network.
    """
    confusion = predictions.confusion
    per_class = "\n".join(
        f"| {label} | {count} | {right / count:.2%} |"
        for label, count, right in zip(
            config["class_names"], confusion.sum(dim=1).tolist(), confusion.diag().tolist(), strict=True
        )
    )
    _, channels, size, _ = config["input"]["shape"]
    shape = {
        "channels": channels,
        "size": size,
        "colour": "grey" if channels == 1 else "RGB",
        "classes": len(config["class_names"]),
    }
    text = TEMPLATE.format(
        programs=PROGRAMS.format(**shape) if len(differences) > 1 else "",
        name=name,
        model=summary["model"],
        parameters=summary["parameters"],
        accuracy=predictions.accuracy,
        right=int(confusion.diag().sum()),
        count=len(predictions.labels),
        classes=len(config["class_names"]),
        per_class=per_class,
        ece_before=config["expected_calibration_error_before"],
        ece=config["expected_calibration_error"],
        temperature=config["temperature"],
        data=summary["data"],
        train=len(dataset.collection.labels) - len(dataset),
        split="split.csv",
        data_options=json.dumps(config["data_hparams"], indent=2, ensure_ascii=False),
        best_epoch=summary["best_epoch"],
        epochs=summary["epochs"],
        seconds=summary["seconds"],
        device=summary["device"],
        precision=summary["precision"],
        options=json.dumps(config["hyper_parameters"], indent=2, ensure_ascii=False),
        versions=", ".join(f"{package} {version}" for package, version in summary["versions"].items()),
        differences=", ".join(f"`{form}` {difference:.1e}" for form, difference in differences.items()),
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # folders need not be called in UTF-8
