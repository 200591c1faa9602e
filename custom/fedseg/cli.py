"""The ``fedseg`` command: one subcommand a module in ``fedseg.commands``, one exit code for each kind of end."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Sequence

from rich.markup import escape

from fedseg.console import err
from fedseg.errors import FedsegError, UsageError
from fedseg.files.full_disk import is_full
from fedseg.version import __version__

COMMANDS = (
    "phantom",
    "check-data",
    "partition",
    "import-data",
    "import-dicom",
    "simulate",
    "experiment",
    "choose-components",
    "evaluate",
    "predict",
    "report",
    "statistics",
    "plan",
    "advise",
    "rank",
    "export",
    "package",
    "files",
    "decrypt-model",
    "import-weights",
    "audit-log",
    "describe-split",
    "probe-split",
    "privacy",
    "provision",
    "site",
    "equip",
    "submit",
    "jobs",
    "resume",
    "fetch",
    "local-federation",
)

_GO_ON = {
    "simulate": " Add --resume to go on after the last finished round.",
    "experiment": " The same command goes on with what is not done.",
}


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line; each module in ``fedseg.commands`` adds its own part by ``add_parser(subparsers)``.

    Args:
        names: commands that it shall know.
    """
    parser = argparse.ArgumentParser(
        prog="fedseg",
        description="Federated training of segmentation networks for clinical images.",
        epilog="example: fedseg simulate jobs/hippocampus_fedavg --data runs/data --out runs/first",
    )
    parser.add_argument("--version", action="version", version=f"fedseg {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        importlib.import_module(f"fedseg.commands.{name.replace('-', '_')}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done; 1: the work failed, the reason is on stderr; 2: wrong usage; 130: interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # Modules of other commands, which take seconds to import, are not needed.
    first = next(iter(arguments), "")
    names = [first] if first in COMMANDS else [] if first == "--version" else COMMANDS
    options = _parse(build_parser(names), arguments)
    if threading.current_thread() is threading.main_thread():
        # A terminated command cleans up like an interrupted one: it ends its processes and removes what is half done.
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = options.run(options)
    except UsageError as error:
        err().print(f"[red]fedseg {options.command}:[/red] {escape(str(error))}")
        return 2
    except FedsegError as error:
        err().print(f"[red]fedseg {options.command}:[/red] {escape(str(error))}")
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        remedy = " Make room there, then call the command again." if is_full(error) else ""
        said = escape(f"{error.strerror or error}{where}.{remedy}")
        err().print(f"[red]fedseg {options.command}:[/red] {said}")
        return 1
    except KeyboardInterrupt:
        err().print(f"[red]fedseg {options.command}:[/red] interrupted.{_GO_ON.get(options.command, '')}")
        return 130
    return int(code or 0)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; what its command does not know is refused with the usage of that command."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
