"""Configs and options, as they are meant: class names as text, and names that options had earlier."""

import contextlib
import json
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_modules.checkpoint import is_ours, with_recipe
from lightning_modules.recipe import Recipe

CLASSES = "classes"  # YAML would read a class called 07 as the number 7, and one called no as false
CLASSES_OPTION = re.compile(rf"--data(\.init_args)?\.{CLASSES}\+?")
RECIPE_OPTION = re.compile(rf"--model\.(init_args\.)?({'|'.join(field.name for field in fields(Recipe))})\b")


def read_configs_as_meant() -> None:
    """Let all configs of this process be read so."""
    load = get_loader("yaml")
    set_loader("yaml", lambda text: _with_new_names(load(_quote_class_names(text))), (yaml.YAMLError,))


def as_meant(args: list[str]) -> list[str]:
    """The arguments of a command, as they are meant."""
    meant = []
    network = named_class("model", args)
    own_network = "." in network and not is_ours(network)
    for place, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals and CLASSES_OPTION.fullmatch(option):
            arg = f"{option}={_quote_option(value)}"
        elif place > 0 and CLASSES_OPTION.fullmatch(args[place - 1]):
            arg = _quote_option(arg)
        elif not own_network:
            arg = RECIPE_OPTION.sub(r"--model.\1recipe.\2", arg)
        meant.append(arg)
    return meant


def as_yaml(value: Any) -> str:
    """JSON that YAML reads alike: it knows a sign beyond U+FFFF by one escape, where JSON has two."""
    return re.sub("[^ -~]", lambda sign: f"\\U{ord(sign[0]):08x}", json.dumps(value, ensure_ascii=False))


def named_class(part: str, args: list[str]) -> str:
    """The ``model`` or ``data`` that a command line names, by its option or in a config; empty where it names none."""
    named = ""
    for option, value in pairwise(piece for arg in args for piece in arg.split("=", 1)):
        if option == f"--{part}":
            named = value
        elif option in ("--config", "-c") and Path(value).is_file():  # a pipe can be read only once
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong
                config = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                given = config.get(part) if isinstance(config, dict) else None
                given = given.get("class_path") if isinstance(given, dict) else given
                named = given if isinstance(given, str) else named
    return named


def _quote_option(value: str) -> str:
    try:
        names = yaml.load(value, yaml.BaseLoader)  # noqa: S506 - which reads nothing but text
    except yaml.YAMLError:
        return value  # the parser says what is wrong
    return value if value == "null" else as_yaml(names if isinstance(names, list) else [names])


def _quote_class_names(text: str) -> str:
    """Put quotes around what a YAML document lists under ``classes``, so that it is read as it is written."""
    if CLASSES not in text:
        return text
    try:
        nodes = [yaml.compose(text, yaml.SafeLoader)]
    except yaml.YAMLError:
        return text  # the parser says what is wrong
    names: dict[int, yaml.ScalarNode] = {}  # by their places: an alias gives the same ones again
    for node in nodes:  # which grows
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                nodes.append(value)
                if key.value == CLASSES and isinstance(value, yaml.SequenceNode):
                    plain = [item for item in value.value if isinstance(item, yaml.ScalarNode) and item.style is None]
                    names.update({item.start_mark.index: item for item in plain})
    for start in sorted(names, reverse=True):
        text = text[:start] + as_yaml(names[start].value) + text[names[start].end_mark.index :]
    return text


def _with_new_names(config: Any) -> Any:
    """A config of one of our networks as it was before networks had a folder, and their recipe a name, of their own."""
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(path := model.get("class_path", ""), str):
        return config
    if "." in path and not is_ours(path):
        return config
    renamed = {**model, "class_path": path.rpartition(".")[2]} if path else model
    if isinstance(model.get("init_args"), dict):
        renamed = {**renamed, "init_args": with_recipe(model["init_args"])}
    return {**config, "model": renamed}
