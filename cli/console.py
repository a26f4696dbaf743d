"""The terminal: one console, one way to say that something went wrong."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


# Exit codes of the commands (docs/release.md); 2 is wrong usage and 130 Ctrl-C, as everywhere.
FAILED = 1
EXECUTION_FAILED = 3


class CommandError(Exception):
    """Something the user can mend; the message says what is wrong and what to do. Ends the command with `code`."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        self.code = code
        super().__init__(message)
