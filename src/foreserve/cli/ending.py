"""How a command ends that cannot go on: what is wrong in words on standard error, and a status for scripts."""

from __future__ import annotations

from typing import Final, NoReturn

import typer
from rich.console import Console
from rich.text import Text

EXIT_FAILED: Final = 1
"""Something did not go as it should have."""

EXIT_WRONG: Final = 2
"""An argument, a setting or a file is wrong."""

EXIT_STOPPED: Final = 130
"""After Ctrl-C, as a shell counts it."""


def wrong(words: str, code: int = EXIT_WRONG) -> NoReturn:
    """Say what is wrong and end."""
    Console(stderr=True).print(Text.assemble(("foreserve: ", "red"), words), soft_wrap=True, highlight=False)
    raise typer.Exit(code)
