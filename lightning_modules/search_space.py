"""What a sweep searches: ``space.yaml``."""

import json
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from datamodules.errors import UserError, reason

FORMS = "{low: 1e-4, high: 0.1, log: true}, {low: 1, high: 8} or {choices: [32, 64]}"
TAKEN = ("config", "name", "monitor", "ckpt_path", "tune")  # a sweep is one by these, or they would undo it
Space = dict[str, BaseDistribution]


def read_space(path: Path) -> Space:
    """By the name of an option of ``fit``, such as ``model.recipe.learning_rate``, what it may be.

    A range, ``{low, high}``, holds integers if both ends are, with the ``step`` that is named; ``log: true`` takes each
    tenfold as equally likely. ``{choices: […]}`` are numbers, text, true, false or null.

    Raises:
        UserError: The file can't be read, or isn't of this form.
    """
    try:
        described = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(described, dict) or not described:
        raise UserError(f"{path}: must name options of fit and what each may be, such as model.width: {FORMS}")
    space = {}
    for name, values in described.items():
        if name in TAKEN:
            raise UserError(f"{path}: {name} can't be searched: a sweep has one; leave it out")
        try:
            space[str(name)] = _distribution(values)
        except ValueError as error:
            raise UserError(f"{path}: {name}: {error}") from error
    return space


def as_options(values: dict[str, Any]) -> list[str]:
    """Values of options as ``fit`` takes them on its command line."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def example(space: Space) -> dict[str, Any]:
    """A value for each option, to have them checked before anything is trained."""
    return {
        name: values.choices[0] if isinstance(values, CategoricalDistribution) else values.low  # type: ignore[attr-defined]
        for name, values in space.items()
    }


def _distribution(values: Any) -> BaseDistribution:
    if not isinstance(values, dict) or values.keys() not in ({"choices"}, *_ranges()):
        raise ValueError(f"must be such as {FORMS}, got {json.dumps(values, default=str)}")
    if "choices" in values:
        choices = values["choices"]
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"choices must be a list of values, got {json.dumps(choices, default=str)}")
        if not all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices):
            raise ValueError("choices must be numbers, text, true, false or null")
        return CategoricalDistribution(choices)
    numbers = {name: value for name, value in values.items() if name != "log"}
    if not all(type(number) in (int, float) for number in numbers.values()):
        raise ValueError(f"low, high and step must be numbers, got {json.dumps(numbers, default=str)}")
    log, step = values.get("log", False), values.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, got {json.dumps(log, default=str)}")
    if type(values["low"]) is type(values["high"]) is int:
        return IntDistribution(values["low"], values["high"], log, 1 if step is None else step)
    return FloatDistribution(values["low"], values["high"], log, step)


def _ranges() -> list[set[str]]:
    return [{"low", "high", *more} for more in ((), ("log",), ("step",), ("log", "step"))]
