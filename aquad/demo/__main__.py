"""`make demo`, `make demo KEEP=1`, and the server of a playground that was kept."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from aquad.core.errors import AquadError, Terminated
from aquad.core.escape import escaped
from aquad.demo import interruption


def main() -> int:
    """Exit 0 only if everything is equal at the end; 1 if not; 2 usage; 130 interrupted; 143 terminated."""
    interruption.listen()
    arguments = _arguments()
    # Theirs win over the settings of the playground, and the demo destroys what it is connected to.
    for name in [name for name in os.environ if name.upper().startswith(("AQUAD", "PG"))]:
        del os.environ[name]
    try:
        return _run(arguments)
    except (KeyboardInterrupt, Terminated):
        code, message = interruption.exit_code(), ""
    except AquadError as error:
        code, message = error.exit_code, str(error)
    except OSError as error:
        code, message = 1, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if interruption.exit_code():  # perhaps a child that had just been forked got it first, and what failed is only that
        code = interruption.exit_code()
        message = f"{'interrupted' if code == 130 else 'terminated'}; nothing is left behind"
    print(f"demo: {escaped(message)}", file=sys.stderr)  # noqa: T201 - this is a command line
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aquad.demo", description=__doc__, allow_abbrev=False)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--keep", type=Path, metavar="DIR", help="leave the playground there, with a ready settings.toml")
    one.add_argument("--serve", type=Path, metavar="DIR", help="run the server of a playground that was kept")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    with interruption.allowed():
        from aquad.demo import acts, serve
    return serve.serve(arguments.serve) if arguments.serve else acts.demo(arguments.keep)


if __name__ == "__main__":
    ended_with = main()
    interruption.ignore()
    sys.exit(ended_with)
