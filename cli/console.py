"""The terminal: one console, one way to say that something went wrong."""

from rich import markup
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)

# Characters by which a text could move the cursor, change what was printed before, or write to the clipboard.
CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    """A text from elsewhere (data, a model's answer, a job's log) as a terminal may get it: controls are spelled out."""
    return text.translate(CONTROLS)


def escape(text: str) -> str:
    """A text from elsewhere within rich's markup: it shows as text."""
    return markup.escape(plain(text))


# Exit codes of the commands (docs/release.md); 2 is wrong usage and 130 Ctrl-C, as everywhere.
FAILED = 1
EXECUTION_FAILED = 3


class CommandError(Exception):
    """Something the user can mend; the message says what is wrong and what to do. Ends the command with `code`."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        self.code = code
        super().__init__(message)
