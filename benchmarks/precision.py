"""The precision that a network is trained in on this CPU, against the other one."""

import torch

from benchmarks.harness import Measurement, Options, in_turn, seconds_of
from benchmarks.training import random_pixels, training_step
from lightning_modules.hardware import cpu_has_bf16, fastest_precision
from lightning_modules.networks.custom_cnn import CustomCNN
from lightning_modules.networks.mobilenetv2 import MobileNetV2
from lightning_modules.networks.reference_cnn import ReferenceCNN

NAMES = [str(digit) for digit in range(10)]
STEPS = 10


def run(options: Options) -> list[Measurement]:
    """Seconds of a training step of each network by its recipe, in full precision and in bf16."""
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    networks = {
        "CustomCNN, 64 images of 28 pixels": (CustomCNN(NAMES, 1, 28), 64),
        "CustomCNN, 256 images of 28 pixels": (CustomCNN(NAMES, 1, 28), 256),
        "ReferenceCNN, 256 images of 100 pixels": (ReferenceCNN(NAMES, 1, 100), 256),
        "MobileNetV2, 32 images at 48 pixels": (MobileNetV2(NAMES, 1, 48, weights=None, input_size=48), 32),
        "MobileNetV2 frozen, 32 images at 224 pixels": (
            MobileNetV2(NAMES, 1, 100, weights=None, input_size=224, unfreeze_at=None),
            32,
        ),
    }
    results = []
    for name, (model, batch) in networks.items():
        chosen = fastest_precision(device, model)
        pixels = random_pixels(model, 2 if options.smoke else batch)
        contestants = {}
        for precision in sorted(("32-true", "bf16-mixed"), key=lambda precision: precision != chosen):
            step = training_step(model, pixels, precision)
            contestants["ours" if precision == chosen else precision] = lambda step=step: seconds_of(
                step, 1 if options.smoke else STEPS
            )
        note = f"ours is {chosen}; this CPU {'has' if cpu_has_bf16() else 'has no'} bf16 of its own"
        results.append(in_turn(Measurement(f"a training step of {name}", "s", note=note), contestants, options.repeats))
    return results
