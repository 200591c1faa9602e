"""Checks of what a site allows, and the same in plain sentences for the person who answers for it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedseg.data.datalist import read_datalist
from fedseg.deployment.kits.installed_kit import LOCAL, InstalledKit
from fedseg.deployment.operation.checks.policy_words import policy_sentences
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, listed, red, yellow
from fedseg.errors import FedsegError
from fedseg.files.documents import read_json
from fedseg.jobs.allowed_components import DEPLOYER, GUARD, JOB_STORE, JSON_ONLY, SERVER_RECEIVERS, site_resources
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.privacy.accounting.ledger_errors import LedgerError
from fedseg.provenance.ledger_check import uncharged
from fedseg.site.policy import SitePolicy
from fedseg.site.profile import SiteProfile, read_profile

_ANEW = "Take the file from the archive of the kit."
_SHOWN = "`fedseg privacy ledger STATE_FOLDER` shows what is wrong."
_RESOURCES, _AUTHORIZATION, _PRIVACY = "resources.json", "authorization.json", "privacy.json"


def check_classes(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Jobs can load fedseg's components and nothing else, and no log leaves."""
    try:
        resources = _object(kit.local / _RESOURCES)
    except FedsegError as error:
        yield red("classes", str(error), _ANEW)
        return
    wanted, found = site_resources()["class_allow_list"], resources.get("class_allow_list")
    where = f"{LOCAL}/{_RESOURCES}"
    opened = set() if kit.is_site else set(SERVER_RECEIVERS)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        yield red("classes", f"{where} has no class_allow_list: every job would fail.", _ANEW)
    elif extra := sorted(set(found) - set(wanted) - opened):
        yield red("classes", f"{where} lets jobs load more than fedseg's components: {listed(extra)}.", _ANEW)
    elif lacking := sorted(set(wanted) - set(found)):
        yield red("classes", f"{where} lacks {listed(lacking)}: jobs that use them fail.", _ANEW)
    elif resources.get("class_list_enforcement_mode", "enforce") != "enforce":
        yield red("classes", f"{where} does not enforce its list of classes.", _ANEW)
    elif named := sorted(opened.intersection(found)):
        said = f"{where} lets jobs pass curves on from here to an address that they name: {listed(named)}."
        yield yellow("classes", said, "Take the entry out if no job of yours needs it.")
    else:
        yield green("classes", f"Jobs can load the {len(wanted)} listed components and nothing else.")
    parts = [str(part.get("path")) for part in resources.get("components", []) if isinstance(part, dict)]
    yield _jobs({JSON_ONLY, DEPLOYER if kit.is_site else JOB_STORE} - set(parts), kit)
    if kit.is_site:
        yield _logs(resources, parts)


def _jobs(lacking: set[str], kit: InstalledKit) -> CheckResult:
    if lacking:
        remedy = shlex.join(["fedseg", "equip", str(kit.folder)])
        return red("jobs", f"{LOCAL}/{_RESOURCES} lacks {listed(sorted(lacking))}: jobs are read unseen.", remedy)
    return green("jobs", "They are looked at before FLARE reads them.")


def _logs(resources: Mapping[str, Any], parts: Sequence[str]) -> CheckResult:
    senders = [path for path in parts if "log_streaming" in path or "LogStreamer" in path or "LogSender" in path]
    if resources.get("allow_log_streaming") is not False or senders:
        return red("logs", f"{LOCAL}/{_RESOURCES} lets logs leave, which hold names of files.", _ANEW)
    return green("logs", "No log leaves the site.")


def check_rights(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Nobody may bring code, or run commands here."""
    where = f"{LOCAL}/{_AUTHORIZATION}"
    try:
        permissions = _object(kit.local / _AUTHORIZATION).get("permissions")
    except FedsegError as error:
        yield red("rights", str(error), _ANEW)
        return
    if not isinstance(permissions, dict) or not permissions:
        yield red("rights", f"{where} has no permissions.", _ANEW)
        return
    bring = [role for role in permissions if _may(permissions[role], "byoc")]
    shell = [role for role in permissions if _may(permissions[role], "shell_commands")]
    if bring:
        yield red("rights", f"{where} lets {', '.join(bring)} bring code in a job.", f'Write "byoc": "none". {_ANEW}')
    if shell:
        remedy = f'Write "shell_commands": "none". {_ANEW}'
        yield yellow("rights", f"{where} lets {', '.join(shell)} run commands on this machine.", remedy)
    if not bring and not shell:
        yield green("rights", "Nobody may bring code in a job, or run commands on this machine.")


def _may(rights: Any, right: str) -> bool:
    """Whether a role has a right; FLARE also takes one word for all rights of a role."""
    value = rights.get(right, "none") if isinstance(rights, dict) else rights
    return value != "none"


def check_guard(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """The guard watches what leaves."""
    if not kit.is_site:
        return
    try:
        content = _object(kit.local / _PRIVACY)
    except FedsegError as error:
        yield red("guard", str(error), _ANEW)
        return
    parts = content.get("components")
    named = isinstance(parts, list) and any(isinstance(p, dict) and p.get("path") == GUARD for p in parts)
    if not named or not content.get("scopes"):
        yield red("guard", f"{LOCAL}/{_PRIVACY} does not put the guard in place.", _ANEW)
    else:
        yield green("guard", "Looks at every result before it leaves.")


def check_policy(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """What the site's own limits are, and how much of its privacy budgets is spent."""
    try:
        profile = read_profile(kit.name, kit.local, kit.folder) if kit.is_site else None
    except FedsegError:
        # The check of the profile says what is wrong with it.
        profile = None
    if profile is None:
        return
    if profile.policy is None:
        remedy = f"Write policy in {LOCAL}/fedseg.json; docs/reference/site-policy.md has all rules."
        yield yellow("policy", "This site states no limits: every job of an authorised person is taken.", remedy)
        return
    yield green("policy", " ".join(policy_sentences(profile.policy)))
    yield from _records(profile)
    yield from _least_cases(profile, 0 if profile.policy.evaluate_only else profile.policy.min_cases or 0)
    yield from _budgets(profile, profile.policy)


def _least_cases(profile: SiteProfile, least: int) -> Iterator[CheckResult]:
    """Whether the site has as many patients as its own rule asks for, where its datalists can be read."""
    for name, path in sorted(profile.datasets.items()):
        with suppress(FedsegError):
            datalist = read_datalist(path)
            cases, patients = len(datalist.training), datalist.patients("training")
            if patients < least:
                which = "every job" if cases < least else "every job with a guarantee"
                found = f"min_cases is {least}, but {name} has {patients} patient(s) with {cases} training case(s)"
                remedy = f"Lower min_cases in {LOCAL}/fedseg.json, or offer more cases."
                yield yellow(f"least cases: {name}", f"{found}: {which} on it will be refused.", remedy)


def _records(profile: SiteProfile) -> Iterator[CheckResult]:
    """Whether the ledger has all releases that the records of this site's runs have."""
    try:
        lacking = uncharged(profile.state, Ledger(profile.ledger).history())
    except FedsegError as error:
        # Of a ledger that cannot be read the check of the budget says so, where there is one.
        if not (isinstance(error, LedgerError) and profile.policy and profile.policy.epsilon_budget):
            yield red("ledger", str(error), _SHOWN)
        return
    if lacking:
        found = f"It lacks {len(lacking)} release(s) that the records of runs have: {listed(lacking)}."
        yield red("ledger", found, "It is an older copy. Bring back the newest one.")


def _budgets(profile: SiteProfile, policy: SitePolicy) -> Iterator[CheckResult]:
    if not policy.epsilon_budget:
        remedy = "State epsilon_budget if jobs shall be private; then jobs without a guarantee are refused."
        yield yellow("privacy budget", "None is stated: nothing bounds what jobs may tell of a patient.", remedy)
        return
    names = {*profile.datasets, *policy.epsilon_budget} - {"*"} or {"*"}
    for name in sorted(names):
        budget = policy.budget(name)
        check = f"privacy budget: {name}"
        if budget is None:
            yield green(check, "None; since other data sets have one, jobs on this one are refused.")
            continue
        try:
            spent = Ledger(profile.ledger).spent(budget.delta, dataset=None if name == "*" else name)
        except FedsegError as error:
            yield red(check, str(error), _SHOWN)
            return
        used = "endless" if math.isinf(spent.epsilon) else f"{spent.epsilon:.3g}"
        found = (
            f"Epsilon {used} of {budget.epsilon:g} is spent, at delta {budget.delta:g}, in {spent.releases} guaranteed "
            f"releases. {spent.without_guarantee} releases on these patients had no guarantee, and are not in it."
        )
        if spent.epsilon >= budget.epsilon:
            yield yellow(check, found, "No job with a guarantee is taken any more; that is what the budget is for.")
        else:
            yield green(check, found)


def _object(path: Path) -> dict[str, Any]:
    """The content of a JSON file in ``local`` that holds an object.

    Raises:
        ConfigurationError: it is missing or damaged.
    """
    content = read_json(path, "a file of the kit's settings")
    return content if isinstance(content, dict) else {}
