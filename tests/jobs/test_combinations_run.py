"""Parts that the page calls compatible are trained together: few small runs in one process hold every such pair.

Every day those run that hold all pairs of local objectives, filters and kinds of round; with ``--full`` all pairs do.
What happens at the server alone is tried without training, against the rule and the optimizer by themselves.
"""

import copy
import itertools

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.report import SiteReport
from fedseg.data.datalist import read_datalist
from fedseg.jobs.components import build_component
from fedseg.simulation.in_process import InProcessFederation
from jobs.test_combinations import KINDS, PAIRS, PARTS, ROOT, WRITER, cell_of
from scripted_sites import ScriptedSites, accepted, start
from tiny import EXCLUSIVE, TASK, make_sites

RULES, OPTIMIZERS, SELECTIONS, HOOKS, FILTERS, ROUNDS, STOPPING = KINDS
WORKING = {frozenset(pair) for pair in PAIRS if not cell_of(*pair)}
SIZES = {"alpha": (3, 1), "beta": (2, 1), "gamma": (2, 1)}


def pairs_among(kinds):
    return {pair for pair in WORKING if {part.kind for part in pair} <= set(kinds)}


def held(chosen):
    return {frozenset(pair) for pair in itertools.combinations(chosen, 2)}


def filled(chosen, left, kinds=KINDS):
    """Further parts that go with all of the chosen ones, as long as they bring a pair that is left."""
    while True:
        fitting = [p for p in PARTS if p.kind in kinds and all(frozenset((p, c)) in WORKING for c in chosen)]
        gains = [(len(left & {frozenset((part, other)) for other in chosen}), part) for part in fitting]
        gain, part = max(gains, key=lambda each: each[0], default=(0, None))
        if not gain:
            return chosen
        chosen = [*chosen, part]


def covering(wanted, kinds=KINDS, all_pairs=frozenset()):
    """Sets of parts that hold every wanted pair, and of the others what fits in."""
    left, others, runs = set(wanted), set(all_pairs), []
    order = {part: number for number, part in enumerate(PARTS)}
    for pair in sorted(wanted, key=lambda each: sorted(order[part] for part in each)):
        if pair in left:
            chosen = filled(filled(sorted(pair, key=order.get), left, kinds), others)
            runs.append(chosen)
            left, others = left - held(chosen), others - held(chosen)
    return runs


def named(runs):
    return [" ".join(part.name.replace(", ", "-").replace(" ", "-") for part in chosen) for chosen in runs]


DAILY = covering(pairs_among((HOOKS, FILTERS, ROUNDS)), all_pairs=WORKING)
REST = covering(WORKING - set().union(*map(held, DAILY)))
SERVER = covering(pairs_among((RULES, OPTIMIZERS, SELECTIONS, STOPPING)), (RULES, OPTIMIZERS, SELECTIONS, STOPPING))


def task_of(chosen):
    """The tiny task, as the methods ask for it."""
    return EXCLUSIVE if "ConditionalDistillation" in {part.name for part in chosen} else TASK


def test_every_pair_is_held_by_a_run():
    assert set().union(*map(held, DAILY), *map(held, REST)) == WORKING
    assert {part for chosen in (*DAILY, *REST) for part in chosen} == set(PARTS)


@pytest.fixture(scope="module")
def datalists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), SIZES)
    return {site: read_datalist(data / site) for site in SIZES}


@pytest.mark.parametrize(
    "chosen",
    [
        *(pytest.param(run, id=name) for run, name in zip(DAILY, named(DAILY), strict=True)),
        *(pytest.param(run, id=name, marks=pytest.mark.full) for run, name in zip(REST, named(REST), strict=True)),
    ],
)
def test_parts_that_go_together_train_together(chosen, datalists):
    job = WRITER["job_of"](chosen, task=task_of(chosen))
    job.folder = ROOT / "jobs" / "hippocampus_fedavg"
    job.check()
    federation = InProcessFederation(job, datalists)
    before = copy.deepcopy(getattr(federation.model, "weights", {}))
    federation.run()
    assert federation.events == []
    assert len(federation.rounds) == 2
    after = getattr(federation.model, "weights", {})
    assert all(np.isfinite(value).all() for value in after.values())
    assert not before or any(not np.array_equal(before[name], after[name]) for name in before)
    task = (
        "upload" if job.workflow.get("mode") or "EncryptedTraining" in job.server["workflows"][0]["path"] else "train"
    )
    filters = job.build_filters(task)
    guaranteed = any(each.guarantees for each in filters)
    path, asked = job.server["workflows"][0]["path"], set()
    for entry in federation.rounds:
        # Without waiting, an answer of a round may be that of a site which was asked in a round before.
        asked = set(entry["asked"]) | (asked if "Buffered" in path or "Asynchronous" in path else set())
        assert set(entry["sites"]) <= asked
        for site in entry["sites"].values():
            assert [step["filter"] for step in site["privacy"]] == [type(each).__name__ for each in filters]
            assert (site["epsilon"] is not None) is guaranteed
            assert (site["train_loss"] is None) is guaranteed


def scripted(cases):
    """Sites whose updates, losses and scores are drawn, and what they sent."""
    draw, sent = np.random.default_rng(5), []

    def answer(task, site, message):
        if task == "prepare":
            return accepted(training=cases[site])
        report = SiteReport(
            cases[site], -(-cases[site] // 2), float(draw.uniform(0.1, 1)), float(draw.uniform(0.1, 1)),
            {"mean": float(draw.uniform(0.1, 0.5))}, 2, val_loss_after=float(draw.uniform(0.1, 1)),
            val_score_after=float(draw.uniform(0.1, 0.5)), epsilon=0.5, seconds=float(draw.uniform(1, 2)),
        )  # fmt: skip
        arrays = {n: draw.normal(0, 0.01, v.shape).astype(np.float32) for n, v in message.params.items()}
        sent.append((message.current_round, site, arrays, report))
        return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())

    return answer, sent


@pytest.mark.parametrize("chosen", SERVER, ids=named(SERVER))
def test_the_model_of_a_run_is_what_rule_and_optimizer_make_of_the_updates(chosen, tmp_path):
    job, cases = WRITER["job_of"](chosen, task=task_of(chosen)), {"a": 3, "b": 9, "c": 4, "d": 5}
    job.check()
    answer, sent = scripted(cases)
    run = start(job.build_workflow(), ScriptedSites(answer, "abcd"), tmp_path, job.plan)
    before = {name: value.astype(np.float64) for name, value in run.state.model.weights.items()}
    run.prepare()
    run.run_rounds()
    assert run.state.events == []
    assert len(run.state.rounds) == 2
    assert run.state.stopped is None
    rule = build_component(job.workflow["aggregator"])
    rule.check_plan(job.plan)
    optimizer = build_component(job.workflow["server_optimizer"]) if "server_optimizer" in job.workflow else None
    for number in range(2):
        rule.reset_stats()
        rule.received = before
        for _, site, arrays, report in (each for each in sent if each[0] == number):
            rule.accept_update(site, arrays, report)
        entry = run.state.rounds[number]
        rule.draw = run.state.selection.select(run.state.facts, job.plan.seed, number).draw
        if "DropSlow" not in {part.name for part in chosen}:
            assert entry["asked"] == sorted(rule.draw.counts)
        update = rule.aggregate_model().params
        moves = update if optimizer is None else optimizer.step(update)
        before = {name: value + moves.get(name, 0) for name, value in before.items()}
        assert entry["weights"] == rule.last_weights
    for name, value in run.state.model.weights.items():
        np.testing.assert_allclose(value, before[name], atol=1e-5)
