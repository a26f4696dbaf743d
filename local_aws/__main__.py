"""python -m local_aws --port 4566 --root DIR --image huggingface-pytorch-training=.venv-steps"""

import argparse
import os
import re
from pathlib import Path

from local_aws import server
from local_aws.service_faults import FaultRuleError, Rule


def image(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    # Not resolved: the python of a virtual environment is a link, and the link is what makes it the environment's.
    path = Path(folder).absolute()
    if not name or not (path / "bin").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not REPOSITORY=FOLDER with a folder that holds bin/")
    return name, path


def account(text: str) -> str:
    if not re.fullmatch(r"\d{12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an account's number, which has 12 digits")
    return text


def time_factor(text: str) -> float:
    factor = float(text)
    if not 1 <= factor <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 3600")
    return factor


def fault(text: str) -> Rule:
    try:
        return Rule.parse(text)
    except FaultRuleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local_aws", description="AWS on this machine, on localhost only.")
    parser.add_argument("--port", type=int, default=4566, help="port on localhost; 0 takes a free one (default 4566)")
    parser.add_argument("--root", type=Path, default=Path("build/local_aws"), help="folder for jobs, logs and objects")
    parser.add_argument(
        "--image",
        type=image,
        action="append",
        default=[],
        metavar="REPOSITORY=FOLDER",
        help="folder whose bin/ plays the container image of that repository name; repeat it",
    )
    parser.add_argument("--account", type=account, default=server.ACCOUNT, help=f"12 digits (default {server.ACCOUNT})")
    parser.add_argument("--region", default=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    parser.add_argument(
        "--time-factor",
        type=time_factor,
        default=1.0,
        metavar="N",
        help="how many times faster waits of services pass than on AWS: baking periods, alarm periods (default 1)",
    )
    parser.add_argument(
        "--fault",
        type=fault,
        action="append",
        default=[],
        metavar="RULE",
        help="a service that fails, such as service=s3,operation=GetObject,error=SlowDown,times=3; repeat it",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="go on with the state in FOLDER, and leave it there at the end"
    )
    parser.add_argument(
        "--neighbours",
        type=Path,
        metavar="FOLDER",
        help="answer for this account and region to the servers of others that have the same FOLDER, and ask them",
    )
    options = parser.parse_args()
    server.serve(
        options.root.absolute(),
        dict(options.image),
        options.port,
        options.region,
        options.time_factor,
        options.fault,
        options.keep and options.keep.absolute(),
        options.account,
        options.neighbours and options.neighbours.absolute(),
    )


if __name__ == "__main__":
    main()
