"""``--route`` of ``evaluate`` and ``predict``: several models as one, with gates that the images at hand adapt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedseg.allowed import settings
from fedseg.commands.saved_model import origin
from fedseg.console import out, track
from fedseg.data.datalist import Case
from fedseg.errors import DataError, UsageError
from fedseg.files.documents import write_json

if TYPE_CHECKING:
    from fedseg.evaluation.scoring import Predictor
    from fedseg.models.model_file import ModelFile

ROUTING = "routing.json"


def routing_files(options: argparse.Namespace) -> list[Path]:
    """What ``route`` writes.

    Raises:
        UsageError: epochs are given, and nothing to route among; or statistics are to be adapted as well.
    """
    if options.route_epochs is not None and not options.route:
        raise UsageError("--route-epochs needs --route, the models that are mixed.")
    if options.adapt_statistics and options.route:
        raise UsageError("--route adapts gates to the images: leave out --adapt-statistics, or --route.")
    return [options.out / ROUTING] if options.route else []


def route(options: argparse.Namespace, predictor: Predictor, cases: Sequence[Case]) -> Predictor:
    """The predictor as it is, or with ``--route`` one whose network mixes its model with the others.

    The gates are adapted on the images of the cases. Which models there were, what each contributed and the losses
    stand in ``routing.json`` in the folder for the result.

    Raises:
        DataError: a model cannot be used, is of another task or network, or is no site's model.
        ConfigurationError: a setting is out of its range, or the network has a part that cannot be mixed.
    """
    if not options.route:
        return predictor
    from fedseg.evaluation.routing import mixed
    from fedseg.files.digest import model_digest
    from fedseg.models.model_file import read_model
    from fedseg.training.inference import choose_device
    from fedseg.training.routing import RoutingSettings, adapt_routing

    given = {} if options.route_epochs is None else {"epochs": options.route_epochs}
    chosen, models = settings(RoutingSettings, given, "--route"), {options.model: predictor.model}
    for path in options.route:
        models[path] = read_model(path)
        origin(path, model_digest(models[path].weights), options.accept_changed_model)
        _check_same(path, models[path], predictor.model)
    models = _each_once(models)
    device = choose_device(options.device)
    network = mixed(list(models.values()), chosen.seed).to(device)
    shown = partial(track, description="epochs", total=chosen.epochs, slow=True)
    adapted = adapt_routing(network, predictor.model.task, cases, chosen, device, shown)
    shares = adapted.shares or [1 / len(models)] * len(models)
    told = [
        {"file": str(path), "digest": model_digest(model.weights), "share": share}
        for (path, model), share in zip(models.items(), shares, strict=True)
    ]
    write_json(options.out / ROUTING, {"schema": "fedseg-routing-1", "models": told, "losses": list(adapted.losses)})
    words = ", ".join(f"{path.name} {share:.2f}" for path, share in zip(models, shares, strict=True))
    out().print(f"routed among {len(models)} model(s), mean gates: {words}")
    return replace(predictor, network=network)


def _each_once(models: dict[Path, ModelFile]) -> dict[Path, ModelFile]:
    """Models of the very same arrays once, under the first of their names."""
    from fedseg.files.digest import model_digest

    first: dict[str, Path] = {}
    for path, model in models.items():
        first.setdefault(model_digest(model.weights), path)
    return {path: models[path] for path in first.values()}


def _check_same(path: Path, model: ModelFile, wanted: ModelFile) -> None:
    # The wanted one may have been narrowed to the labels at hand, and may keep other connected parts.
    task = replace(model.task, conventions=wanted.task.conventions, components=wanted.task.components)
    if task.to_dict() != wanted.task.to_dict() or model.network.to_dict() != wanted.network.to_dict():
        raise DataError(f"--route {path} is of another task or network than the model; take models of one run.")
    if own := model.notes.get("own_arrays"):
        what = f"lacks {len(own)} arrays that each site has for itself, so it is no site's model"
        raise DataError(f"--route {path} {what}. Take models such as personal.safetensors.")
