"""Flags of the steps: a wrong one is a StepError, so that it reaches the execution's FailureReason like any other."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from pipeline_steps.contract.errors import StepError


class ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StepError(f"{self.prog}: {message}; '{self.prog} --help' lists the flags")


def number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], Any]:
    """A flag's type: a number from `low` to `high`, both included."""

    def parse(text: str) -> int | float:
        limits = f"{text!r}, allowed: {'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(limits) from None
        if not math.isfinite(value) or not low <= value <= high:
            raise argparse.ArgumentTypeError(limits)
        return value

    return parse
