"""`aquad` in the image, once enter.sh has chosen the user: confined, then the command line.

What a restore, as root, writes into the repository is given to the repository's owner at its end, whatever the end is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aquad.core.confine import confine
from aquad.core.errors import AquadError
from aquad.image.owner import give_back


def main() -> None:
    try:
        confine()
    except AquadError as error:
        sys.exit(f"aquad: error: {error}")
    from aquad.cli import main as command_line

    try:
        command_line()
    finally:
        repository = os.environ.get("AQUAD_GIVE_BACK", "")
        if repository and os.geteuid() == 0:
            give_back(Path(repository))


main()
