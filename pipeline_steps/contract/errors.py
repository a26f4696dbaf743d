"""Errors that a person reads: what is wrong, the value, what is allowed, what to do."""

from collections.abc import Sequence

SHOWN = 20  # problems listed in one message; the count of all is always told


class StepError(Exception):
    """A step cannot go on; the message is for the user and reaches the execution's FailureReason."""


class DataError(StepError):
    """The data cannot be used; the message lists every problem with its place, up to SHOWN of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        more = len(self.problems) - SHOWN
        lines = [*self.problems[:SHOWN], *([f"... and {more} more problems"] if more > 0 else [])]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type["DataError"], tuple[list[str]]]:
        return (DataError, (self.problems,))  # the way back from another process
