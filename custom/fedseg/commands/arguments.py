"""Arguments of commands, one a line, and those that several commands have in common."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedseg.data.label_noise import LabelNoise, parse_label_noise
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.data.weak_labels import EVERYWHERE, WeakLabels
from fedseg.errors import UsageError
from fedseg.files.outputs import check_outputs

CONVENTION_HELP = "the label convention that all files follow (default: told from their names, or from all labels)"
Run = Callable[[argparse.Namespace], int]


class Later:
    """A text that is made only where help is printed, since making it imports networks."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make

    def __str__(self) -> str:
        return self._make()


class Command:
    """A ``fedseg`` command on the command line; each method adds an argument.

    >>> def run(options):
    ...     '''``fedseg count``: count cases.
    ...
    ...     Count all cases of a datalist.
    ...
    ...     example: fedseg count a.json
    ...     '''
    >>> command = Command(argparse.ArgumentParser().add_subparsers(), run)
    >>> command.path("list", "a datalist")
    >>> command.flag("--quick", "do not open images")
    >>> command.parser.parse_args(["a.json"]).quick
    False
    """

    def __init__(self, subparsers: Any, run: Run | None, text: str | None = None) -> None:
        """Add a command.

        Args:
            subparsers: of the command line, or of a command that has commands itself.
            run: does the work and returns the exit code; None for a command that has commands itself.
            text: name and summary, description, and example, as in the example above; None takes what ``run`` says of
                itself.
        """
        head, description, epilog = inspect.cleandoc(text or run.__doc__ or "").split("\n\n")
        names, _, summary = head.partition(": ")
        self.parser: argparse.ArgumentParser = subparsers.add_parser(
            names.strip("`").split()[-1],
            help=summary.removesuffix("."),
            description=" ".join(description.split()),
            epilog=" ".join(epilog.split()),
        )
        self._target: argparse._ActionsContainer = self.parser
        if run is not None:
            self.parser.set_defaults(run=run, parser=self.parser)

    def actions(self, help_text: str) -> Any:
        """Give the command commands of its own; returns what they are added to."""
        return self.parser.add_subparsers(dest="action", required=True, metavar="ACTION", help=help_text)

    @contextmanager
    def only_one(self, required: bool = False) -> Iterator[None]:
        """Of the arguments that are added inside, a command line may have one only."""
        self._target = self.parser.add_mutually_exclusive_group(required=required)
        yield
        self._target = self.parser

    def value(self, name: str, help_text: str, kind: Callable[[str], Any] = str, **more: Any) -> argparse.Action:
        """Add an argument with a value; ``more`` is what ``argparse`` knows besides."""
        return self._target.add_argument(name, help=help_text, type=kind, **more)

    def path(self, name: str, help_text: str, metavar: str | None = None, **more: Any) -> None:
        """Add a file or a folder."""
        self.value(name, help_text, Path, metavar=metavar, **more)

    def flag(self, name: str, help_text: str) -> None:
        """Add a switch that is off unless it is given."""
        self.parser.add_argument(name, help=help_text, action="store_true")

    def several(self, name: str, help_text: str, metavar: str) -> None:
        """Add an option that may be repeated; its value is the list of what was given."""
        self.parser.add_argument(name, help=help_text, action="append", default=[], metavar=metavar)

    def settings(self) -> None:
        """Add ``--set`` to a command that takes a job."""
        self.several("--set", "as for simulate", "KEY=VALUE")

    def kit(self) -> None:
        """Add ``--kit`` to a command that speaks with a federation."""
        self.path("--kit", "your unpacked kit, of a person's role", "DIR", required=True)

    def job_id(self) -> None:
        """Add the id of a job of a federation."""
        self.value("job_id", "as `fedseg submit` printed it; `fedseg jobs` lists all")

    def wait(self) -> None:
        """Add ``--wait`` to a command that submits a job."""
        self.flag("--wait", "show how it goes until the job has ended")

    def changed_model(self, verb: str) -> None:
        """Add ``--accept-changed-model``; the verb says what is done with the model."""
        self.flag(
            "--accept-changed-model", f"{verb} the model although it is not the one that its provenance file is about"
        )


def add_partial(command: Command) -> None:
    """Declare the options that ``partial_labels`` reads."""
    command.value("--drawn", "regions that alone stay drawn, see --drawn-at (default: all)", words, metavar="A,B,...")
    command.value("--drawn-at", "sites at which they alone stay (default: everywhere)", words, metavar="SITE,...")
    command.value("--drawn-share", "share of the patients there, at random (default 1)", float, metavar="SHARE")


def partial_labels(options: argparse.Namespace) -> PartialLabels | None:
    """Which regions stay drawn, and where; None where nothing is asked for.

    Raises:
        UsageError: it is said where, but not which regions.
    """
    if options.drawn is None:
        if options.drawn_at is not None or options.drawn_share is not None:
            raise UsageError("--drawn-at and --drawn-share need --drawn, the regions that stay.")
        return None
    share = 1.0 if options.drawn_share is None else options.drawn_share
    return PartialLabels(tuple(options.drawn), tuple(options.drawn_at or ()), share)


def add_label_noise(command: Command) -> None:
    """Declare the option that ``label_noise`` reads."""
    told = "how the annotator of a site draws: eroded_mm, dilated_mm, shifted_mm, flipped, share; may be repeated"
    command.several("--label-noise", told, "SITE:HABIT=STRENGTH,...")


def label_noise(options: argparse.Namespace) -> dict[str, LabelNoise]:
    """How the annotators of sites draw, by site; nothing where nothing is asked for.

    Raises:
        UsageError: an argument has another form, or a site is named twice.
        ConfigurationError: as of ``parse_label_noise``.
    """
    found: dict[str, dict[str, Any]] = {}
    for argument in options.label_noise:
        site, separator, habits = argument.partition(":")
        pairs = [pair.partition("=") for pair in habits.split(",")]
        if not separator or not all(sign for _, sign, _ in pairs):
            raise UsageError(f"--label-noise {argument} must have the form SITE:HABIT=STRENGTH, as site-1:eroded_mm=2.")
        if site in found:
            raise UsageError(f"--label-noise names {site} twice. Give all its habits in one, separated by commas.")
        found[site] = {name: _strength(argument, value) for name, _, value in pairs}
    return parse_label_noise("--label-noise", found) if found else {}


def _strength(argument: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--label-noise {argument}: {value!r} is no number.") from None


def add_weak(command: Command) -> None:
    """Declare the options that ``weak_labels`` reads."""
    told = "boxes, image or none in the place of masks, at every site or at some (default: masks everywhere)"
    command.value("--supervision", told, words, metavar="KIND|SITE=KIND,...")
    command.value("--supervision-share", "share of the patients there, at random (default 1)", float, metavar="SHARE")


def weak_labels(options: argparse.Namespace) -> WeakLabels | None:
    """Which cases have what in the place of masks; None where nothing is asked for.

    Raises:
        UsageError: it is said how many, but not what; or regions are to be taken out of the same labels.
    """
    if options.supervision is None:
        if options.supervision_share is not None:
            raise UsageError("--supervision-share needs --supervision, which says what cases have instead of masks.")
        return None
    if options.drawn is not None:
        raise UsageError("--supervision does not go with --drawn: boxes of regions that nobody drew would say nothing.")
    share = 1.0 if options.supervision_share is None else options.supervision_share
    pairs = [word.rpartition("=")[::2] for word in options.supervision]
    if len(dict(pairs)) < len(pairs):
        raise UsageError(f"--supervision names one place twice: {', '.join(options.supervision)}.")
    return WeakLabels({site or EVERYWHERE: kind for site, kind in pairs}, share)


def words(text: str) -> list[str]:
    """The words of a list that is given as ``A,B,...``."""
    return [word.strip() for word in text.split(",")]


def check_report_file(option: str, path: Path, inputs: Iterable[Path]) -> None:
    """Refuse a file for a command's result whose folder is missing, or that the command reads.

    Raises:
        UsageError: as of ``check_outputs``.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: the folder {path.parent} does not exist.")
    check_outputs(option, [path], inputs)


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else their paths.

    Raises:
        UsageError: a folder is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise UsageError("the same run is named twice.")
    names = [folder.name for folder in resolved]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
