"""The terminal: one console, one way to say that something went wrong."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


class CommandError(Exception):
    """Something the user can mend; the message says what is wrong and what to do. Ends the command with code 1."""
