"""Sites and server of split training with messages that are serialised as on the wire, without FLARE."""

from __future__ import annotations

import itertools

from nvflare.fuel.utils import fobs

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.executors.split.answers import SplitAnswers
from fedseg.messages.calls.call import read_call
from fedseg.networks.weights import join_shared
from fedseg.site.state import SiteState
from fedseg.training.split.halves import server_half, site_half
from fedseg.training.split.site_round import SplitSite
from fedseg.training.split.state import optimizer_arrays
from fedseg.training.split.weights import average_parts
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from fedseg.workflows.split.round import SplitRound, SplitTurns
from tiny import PLAN, make_sites

SITES = {"a": 4, "b": 3, "c": 2}
STEPS = 3


def make_data(folder):
    """The cases of three sites."""
    make_sites(folder, {site: (cases, 0) for site, cases in SITES.items()})
    return {site: read_datalist(folder / site) for site in SITES}


def plan_of(network=PLAN["network"], **split):
    training = {**PLAN["training"], "batch_dice": False, "schedule": "polynomial"}
    return parse_plan({**PLAN, "network": network, "training": training, "split": {"message": "float32", **split}})


class Wire:
    """Three sites behind serialised calls; keeps every message, and loses answers as told: {(site, ask, step)}.

    Attributes:
        messages: (site, way, ask, message) of every call and answer.
        left: sites that the round has left out, and why.
        common: the server's copy of the part that the sites have in common.
    """

    def __init__(self, plan, data, lost=(), states=None):
        self.plan, self.lost, self.messages, self.left = plan, set(lost), [], {}
        self.trainers = {
            s: SiteTrainer(plan, s, d, TrainerSetup(states and SiteState(states / s, "run"), simulated=True))
            for s, d in data.items()
        }
        self.sites = {site: SplitAnswers(SplitSite(trainer)) for site, trainer in self.trainers.items()}
        self.server = server_half(plan, plan.split)
        self.common = site_half(plan, plan.split, "all sites")

    def carry(self, site, way, call):
        shareable = call.to_shareable()
        self.messages.append((site, way, call.ask, shareable))
        return read_call(fobs.loads(fobs.dumps(shareable)))

    def exchange(self, calls):
        answers = {}
        for site in sorted(calls, reverse=True):  # the order of arrival does not matter
            call = calls[site]
            answer = self.sites[site].answer(self.carry(site, "down", call))
            if (site, str(call.ask), call.step) not in self.lost:
                answers[site] = self.carry(site, "up", answer)
        return answers

    def run(self, number=0, steps=STEPS, rounds=2, asked=SITES, pause=0.0):
        """A round with the sites that are asked; ``steps`` by site where they train one after the other."""
        split, received = self.plan.split, self.server.weights()
        if split.site_update != "separate":
            received = {**received, **self.common.weights()}
        if split.site_update == "summed":
            received = join_shared(received, optimizer_arrays(self.common))
        for site in asked:
            self.sites[site].site.begin(number, received)
        kind = SplitTurns if split.in_turn else SplitRound
        job = kind(self.plan, self.server, self.common, "start", number, self.exchange, self.left.__setitem__)
        span = number / rounds, (number + 1) / rounds
        there = job.run(sorted(asked), steps, *span, *([pause] if split.in_turn else []))
        if split.site_update == "averaged":
            mean = average_parts({site: self.halves[site].weights() for site in asked}, job.result.samples)
            self.common.set_weights(mean)
        return there, job.result

    @property
    def halves(self):
        return {site: each.site.half for site, each in self.sites.items()}

    def batches(self, number=0):
        """The same batches again, from trainers of their own."""
        return {site: endless(trainer, number) for site, trainer in self.trainers.items()}


def endless(trainer, number):
    for epoch in itertools.count():
        yield from trainer.batches(number, epoch)


def plain(plan):
    return server_half(plan, plan.split), {site: site_half(plan, plan.split, site, simulated=True) for site in SITES}
