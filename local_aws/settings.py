"""What a running local AWS is made of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`root` holds jobs, logs and object files; `images` maps an image's repository name to the folder that plays it."""

    root: Path
    images: dict[str, Path]
    port: int
    region: str
    account: str
    url: str
