"""What is done with runs, one command a file."""

from importlib import import_module

# Commands beside those of Lightning, or before them, and the modules whose ``main`` they are.
COMMANDS = {
    "compare": "lightning_modules.commands.compare",
    "export": "lightning_modules.commands.export",
    "predict": "lightning_modules.commands.predict",
    "read": "lightning_modules.commands.read",
    "sweep": "lightning_modules.commands.sweep",
}


def run(name: str, args: list[str] | None = None) -> int:
    """Run the command of that name; returns its exit status."""
    return int(import_module(COMMANDS[name]).main(args))
