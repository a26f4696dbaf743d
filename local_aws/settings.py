"""What a running local AWS is made of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`root` holds jobs, logs and object files; `images` maps an image's repository name to the folder that plays it.

    `time_factor` is how many times faster the waits of services pass here than on AWS: a baking period of 300 s takes
    5 s with 60, and an alarm's period of 60 s is 1 s. Requests and answers keep AWS's values. `hidden` are folders that
    containers see empty. `neighbours` is the folder by which servers of other accounts and regions are known.
    """

    root: Path
    images: dict[str, Path]
    port: int
    region: str
    account: str
    url: str
    time_factor: float = 1.0
    hidden: tuple[Path, ...] = ()
    neighbours: Path | None = None
