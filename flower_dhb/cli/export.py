"""`flower-dhb export`: the current model of a peer, at any time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "state", type=Path, help="state directory of a peer, which may run or have been killed"
    )
    parser.add_argument(
        "--out", type=Path, help="file to write; vertex-V-round-K.safetensors if left out"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Write the newest whole model as safetensors, with its origin as metadata."""
    from flower_dhb.files import replacing
    from flower_dhb.peer.device.model import current_model

    directory: Path = arguments.state
    if (directory / "peer.toml").is_file() and (directory / "state").is_dir():
        directory = directory / "state"
    model = current_model(directory, lambda text: print(f"{text}", file=sys.stderr))
    out: Path = arguments.out or Path(f"vertex-{model.vertex}-round-{model.round}.safetensors")
    with replacing(out) as write:
        for piece in model.pieces():
            write(piece)
    print(f"{out}: {model.origin}, {len(model.layout.entries)} arrays, {model.n_bytes:,} bytes")
    return 0
