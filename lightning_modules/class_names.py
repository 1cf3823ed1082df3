"""Class names are text: YAML would read 07 as the number 7, and no as false."""

import json
import re

import yaml
from jsonargparse import get_loader, set_loader

KEY = "classes"
OPTION = re.compile(rf"--data(\.init_args)?\.{KEY}\+?")


def quote_class_names(text: str) -> str:
    """Put quotes around what a YAML document lists under ``classes``, so that it is read as it is written."""
    if KEY not in text:
        return text
    try:
        nodes = [yaml.compose(text, yaml.SafeLoader)]
    except yaml.YAMLError:
        return text  # the parser says what is wrong
    names: list[yaml.ScalarNode] = []
    for node in nodes:  # which grows
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                nodes.append(value)
                if key.value == KEY and isinstance(value, yaml.SequenceNode):
                    names += [item for item in value.value if isinstance(item, yaml.ScalarNode)]
    for name in sorted(names, key=lambda name: name.start_mark.index, reverse=True):
        text = text[: name.start_mark.index] + json.dumps(name.value) + text[name.end_mark.index :]
    return text


def quote_class_options(args: list[str]) -> list[str]:
    """The same for the values of ``--data.classes`` on a command line."""
    quoted = []
    for place, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals and OPTION.fullmatch(option):
            arg = f"{option}={_quote(value)}"
        elif place > 0 and OPTION.fullmatch(args[place - 1]):
            arg = _quote(arg)
        quoted.append(arg)
    return quoted


def _quote(value: str) -> str:
    try:
        names = yaml.load(value, yaml.BaseLoader)  # noqa: S506 - which reads nothing but text
    except yaml.YAMLError:
        return value  # the parser says what is wrong
    return value if value == "null" else json.dumps(names if isinstance(names, list) else [names])


def read_class_names_as_text() -> None:
    """Let all configs of this process be read so."""
    load = get_loader("yaml")
    set_loader("yaml", lambda text: load(quote_class_names(text)), (yaml.YAMLError,))
