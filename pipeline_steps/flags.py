"""A step's job as flags of its command: one flag for each field of a dataclass, named as it is."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

Job = TypeVar("Job")


def parse(kind: type[Job], prog: str, description: str, output: Path, arguments: list[str]) -> Job:
    """The job that `arguments` describe. What may be None may be left out; so may `output`, which then is the given one.

    A list of texts is a flag without its last letter, once for each (`--subnet A --subnet B`); a bool is a switch.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    for field in fields(kind):  # type: ignore[arg-type]
        flag = f"--{field.name}"
        type_: Any = field.type
        if field.name == "output":
            parser.add_argument(flag, type=Path, default=output)
        elif type_ == list[str]:
            parser.add_argument(flag.removesuffix("s"), dest=field.name, action="append", default=[])
        elif type_ is bool:
            parser.add_argument(flag, action="store_true")
        elif type_ in (str, int, float):
            parser.add_argument(flag, type=type_, required=True)
        else:  # what may be left out
            parser.add_argument(flag, type=get_args(type_)[0])
    return kind(**vars(parser.parse_args(arguments)))
