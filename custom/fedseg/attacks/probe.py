"""The inversion probe of a run of split training: whose images, which model, and where the result goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedseg.attacks.inversion.attack import Attack, probe
from fedseg.attacks.inversion.decoder import DecoderSettings
from fedseg.attacks.inversion.patches import ProbePatch, draw_patches
from fedseg.contract.settings import parse_training
from fedseg.contract.split_settings import parse_split
from fedseg.data.datalist import Case, Datalist, read_datalist
from fedseg.data.phantoms.phantoms import PHANTOM_TASKS, make_phantoms
from fedseg.data.site_folders import find_sites
from fedseg.errors import DataError, FedsegError, UsageError
from fedseg.evaluation.report.inversion import PICTURE, draw_reconstructions, inversion_verdict
from fedseg.evaluation.report.inversion_merge import merge_probes
from fedseg.evaluation.report.split_words import own_models
from fedseg.evaluation.summary import read_summary, write_summary
from fedseg.files.digest import model_digest
from fedseg.files.documents import write_json
from fedseg.models.model_file import ModelFile, read_model
from fedseg.networks.split.stages import cut_names
from fedseg.randomness import derive_seed, generator
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task
from fedseg.training.inference import choose_device

logger = logging.getLogger(__name__)
RESULT = "inversion.json"
PHANTOMS = 6  # cases of each simulated site where nothing else is said
PUBLIC_PATCHES, VICTIM_PATCHES, PATCHES_OF_A_CASE = 24, 6, 2
Summary = dict[str, Any]
Progress = Callable[[Iterable[str]], Iterable[str]]
"""Wraps the cuts, to show how far the work is."""
Tell = Callable[[str, bool], object]
"""Gets what happens, and whether it is a warning."""


@dataclass(frozen=True)
class Parties:
    """Whose images the attacker has, and whose features it sees.

    Attributes:
        public: the attacker's cases.
        attackers: sites that these come from; empty for phantoms.
        victims: the victim's cases.
        victim: its site; None for phantoms.
    """

    public: tuple[Case, ...]
    attackers: tuple[str, ...]
    victims: tuple[Case, ...]
    victim: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        attacker = {"images": "sites" if self.attackers else "phantoms", "sites": list(self.attackers)}
        return {"attacker": attacker, "victim": {"images": "site" if self.victim else "phantoms", "site": self.victim}}


@dataclass(frozen=True)
class ProbeOptions:
    """What a user may choose; see ``fedseg probe-split``."""

    phantoms: int | None = None
    steps: int | None = None
    cuts: tuple[str, ...] = ()
    seed: int | None = None


def probe_run(run: Path, data: Path | None, options: ProbeOptions | None = None, progress: Progress = iter) -> Summary:
    """Probe the cuts of a run's network; writes ``inversion.json`` and the picture, and completes ``summary.json``.

    Args:
        run: folder of a run of split training.
        data: folder with ``<site>/datalist.json``; None for phantoms.
        options: see ``fedseg probe-split``.
        progress: see ``Progress``.

    Returns:
        The summary with ``inversion``.

    Raises:
        UsageError: the run is of ordinary training, a cut is unknown, or there are no images to probe with.
        DataError: there is no run, no model, or images are of another task.
    """
    chosen = options or ProbeOptions()
    summary = read_summary(run)
    if not isinstance(summary.get("split"), dict):
        raise UsageError(f"{run} is a run of ordinary training: its network was not cut, so there is nothing to probe.")
    task, split = resolve_task(summary["task_declaration"]), parse_split(summary["split"])
    models = _models(run, summary)
    seed = int(summary["seed"]) if chosen.seed is None else chosen.seed
    with _parties(task, run, data, models, chosen.phantoms, seed) as parties:
        file = models.get(parties.victim or "") or models[max(models)]
        model = read_model(run / file)
        _check_cuts(model, chosen.cuts)
        public, victims = _patches(model.task, parties, seed)
    settings = DecoderSettings() if chosen.steps is None else DecoderSettings(steps=chosen.steps, passes=None)
    training = parse_training(summary["training"])
    attack = Attack(split, training, public, victims, seed, settings, choose_device("auto"))
    inversion, views = probe(model, attack, chosen.cuts or None, progress)
    found = {
        **parties.to_dict(),
        "model": file,
        "model_digest": model_digest(model.weights),
        **inversion.to_dict(),
        "pictured": [cut.cut for cut in inversion.cuts],
    }
    merged, kept = merge_probes(summary.get("inversion"), found, cut_names(model.network))
    report = run / "report"
    if kept:
        merged["pictured"] = kept
        draw_reconstructions(views, kept, model.task, report / PICTURE)
    summary["inversion"] = merged
    write_json(report / RESULT, merged)
    write_summary(summary, report)
    return summary


def probe_after_run(
    run: Path, data: Path | None, summary: Summary, wanted: bool, tell: Tell, progress: Progress = iter
) -> Summary:
    """Probe at the end of a run of split training; whatever comes in between, the run stays as it is.

    Args:
        run: its folder, with ``report/summary.json``.
        data: see ``probe_run``.
        summary: of the run, as written.
        wanted: else only what an earlier probe of a resumed run has left is removed.
        tell: see ``Tell``.
        progress: see ``Progress``.

    Returns:
        The summary, with ``inversion`` where there is one.
    """
    if "split" not in summary:
        return summary
    for name in (RESULT, PICTURE):
        (run / "report" / name).unlink(missing_ok=True)
    if not wanted:
        return summary
    tell("probing how much of an image the features tell", False)
    try:
        summary = probe_run(run, data, progress=progress)
    except FedsegError as error:
        tell(f"not probed: {error}", True)
        return summary
    except Exception as error:
        # The training is done and must not be lost for want of memory or disk.
        logger.debug("The probe failed", exc_info=True)
        tell(f"not probed: {type(error).__name__}: {error}", True)
        return summary
    tell(f"  {inversion_verdict(summary)}", False)
    return summary


@contextmanager
def _parties(
    task: Task, run: Path, data: Path | None, models: dict[str, str], phantoms: int | None, seed: int
) -> Iterator[Parties]:
    """Who attacks whom; phantoms that are needed are there until the end of the context."""
    sites = {} if data is None else _sites(task, data, models)
    victim = max(sites) if sites else None
    others = tuple(sorted(sites.keys() - {victim}))
    if others and phantoms is None:
        assert victim is not None
        public = tuple(case for site in others for case in sites[site].training)
        yield Parties(public, others, sites[victim].training, victim)
        return
    if others and task.name not in PHANTOM_TASKS:
        raise UsageError(
            f"--phantoms {phantoms}: {task.name} has no phantoms. Leave it out: {data} has the images of "
            f"{len(sites)} sites, which is enough."
        )
    if task.name not in PHANTOM_TASKS:
        have = "one site with training cases is not enough" if victim else "no images were named"
        raise UsageError(
            f"The probe needs images of an attacker and of a victim: {have}, and {task.name} has no phantoms. Name a "
            f"folder with two sites: fedseg probe-split {run} --data DIR."
        )
    with TemporaryDirectory(prefix="fedseg-probe-") as folder:
        # Not the seed of the run: it may have been trained on phantoms of that.
        made = make_phantoms(
            task.name, 2, PHANTOMS if phantoms is None else phantoms, Path(folder) / "made", derive_seed(seed, "probe")
        )
        first, second = (read_datalist(path) for path in made)
        theirs = sites[victim].training if victim else (*second.training, *second.validation)
        yield Parties((*first.training, *first.validation), (), theirs, victim)


def _sites(task: Task, data: Path, models: dict[str, str]) -> dict[str, Datalist]:
    """The sites that can be probed: with training cases and, where sites have models of their own, with a model."""
    found = {site: read_datalist(data / site) for site in find_sites(data)}
    for site, datalist in found.items():
        if datalist.task not in (None, task.name):
            raise DataError(f"{data / site} holds images for {datalist.task}, and the run is of {task.name}.")
    usable = {s: d for s, d in found.items() if d.training and (s in models or set(models) == {""})}
    if not usable:
        raise DataError(f"No site in {data} has both training cases and a part in this run.")
    return usable


def _models(run: Path, summary: Summary) -> dict[str, str]:
    """The last model's file by site; by an empty name where all sites have the same one."""
    final = summary.get("final") or {}
    models = {"": final["model"]} if final.get("model") else dict(final.get("models") or {})
    if not models:
        why = ""
        if own_models(summary):
            why = (
                " No site gave its part of the network to the server at the end: a site's policy lets it out only with "
                "the rule submit_model. The server, which has the features, could still learn to invert them."
            )
        raise DataError(f"{run} has no last model, so there is nothing to probe.{why}")
    return models


def _check_cuts(model: ModelFile, cuts: Sequence[str]) -> None:
    known = cut_names(model.network)
    for cut in cuts:
        if cut not in known:
            raise UsageError(f"--cut {cut}: {model.network.name} can be cut behind {', '.join(known)}.")


def _patches(task: Task, parties: Parties, seed: int) -> tuple[list[ProbePatch], list[ProbePatch]]:
    """The attacker's and the victim's patches; a case gives two at most, so that few cases do not seem many."""
    wanted = (("public", parties.public, PUBLIC_PATCHES), ("victim", parties.victims, VICTIM_PATCHES))
    public, victims = (
        draw_patches(task, cases, min(most, PATCHES_OF_A_CASE * len(cases)), generator(seed, "probe", name))
        for name, cases, most in wanted
    )
    return public, victims
