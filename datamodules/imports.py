"""Import modules of the user's own, so that their classes can be named on a command line."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from datamodules.errors import UserError

T = TypeVar("T")

OPTION = "--import"
HELP = "import a module of your own first, such as --import mynet; can be given several times"
OURS = ("datamodules.", "lightning_modules.", "retrieval.", "lightning.", "torch.")


def import_modules(args: list[str], class_options: tuple[str, ...] = ()) -> list[str]:
    """Import the modules that a command line names; nothing else does, least of all a checkpoint.

    Args:
        args: The arguments of a command.
        class_options: Options whose value may be a class with its module, such as ``--model mynet.MLP``.

    Returns:
        The arguments without ``--import MODULE``.

    Raises:
        UserError: There is no such module.
    """
    others: list[str] = []
    waiting = iter(args)
    for arg in waiting:
        option, equals, value = arg.partition("=")
        if option == OPTION:
            module = value if equals else next(waiting, "")
            if not module:
                raise UserError(f"{OPTION}: name a module, such as {OPTION} mynet")
            _import(module, f"{OPTION} {module}")
            continue
        if others and others[-1] in class_options:
            option, value = others[-1], arg
        if option in class_options:
            import_module_of(value, option)
        others.append(arg)
    return others


def import_module_of(value: str, option: str) -> None:
    """Import the module of a class of the user's own, where an option's value is such: ``mynet.MLP``.

    Raises:
        UserError: There is no such module.
    """
    module = value.rpartition(".")[0]
    named = not value.startswith(OURS) and all(part.isidentifier() for part in module.split("."))
    if named and not Path(value).exists():
        _import(module, f"{option} {value}")


def class_path(cls: type) -> str:
    """The name by which a class can be found: ``mynet.MLP``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def find_subclass(base: type[T], name: str) -> type[T] | None:
    """The subclass that ``class_path`` gives this name, among those whose modules have been imported."""
    known = [base]
    for cls in known:  # which grows
        known += cls.__subclasses__()
        if class_path(cls) == name:
            return cls
    return None


def _import(module: str, given: str) -> None:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that isn't
        raise UserError(f"{given}: no module {module} in the current folder, nor is one installed") from error
