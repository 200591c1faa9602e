"""All checks of a site, one after the other, and the verdict over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.operation.checks.connection import check_connection
from fedseg.deployment.operation.checks.data import check_data, check_profile
from fedseg.deployment.operation.checks.folders import check_disk, check_folders
from fedseg.deployment.operation.checks.kit import check_certificates, check_files, check_key_modes
from fedseg.deployment.operation.checks.machine import check_gpu, check_packages, check_user, check_versions
from fedseg.deployment.operation.checks.policy import check_classes, check_guard, check_policy, check_rights
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, Colour, red

Check = Callable[[InstalledKit, CheckOptions], Iterable[CheckResult]]
CHECKS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    ("the kit", (check_files, check_certificates, check_key_modes)),
    ("this machine", (check_user, check_versions, check_packages, check_gpu, check_profile, check_disk, check_folders)),
    ("the server", (check_connection,)),
    ("the data", (check_data,)),
    ("what is allowed", (check_classes, check_rights, check_guard, check_policy)),
)


@dataclass(frozen=True)
class CheckPage:
    """What all checks said.

    Attributes:
        kit: that was checked.
        groups: the results by what they are about, in order.
    """

    kit: InstalledKit
    groups: dict[str, tuple[CheckResult, ...]]

    @property
    def results(self) -> Iterator[CheckResult]:
        """All results."""
        return (result for group in self.groups.values() for result in group)

    @property
    def reds(self) -> list[CheckResult]:
        """The results because of which the site cannot take part."""
        return [result for result in self.results if result.colour is Colour.RED]

    @property
    def colour(self) -> Colour:
        """The worst of all."""
        colours = {result.colour for result in self.results}
        return next((colour for colour in (Colour.RED, Colour.YELLOW) if colour in colours), Colour.GREEN)

    @property
    def verdict(self) -> str:
        """One sentence over all."""
        names = ", ".join(dict.fromkeys(result.check for result in self.results if result.colour is self.colour))
        if self.colour is Colour.RED:
            return f"RED: {self.kit.name} is not ready. To mend: {names}."
        if self.colour is Colour.YELLOW:
            return f"YELLOW: {self.kit.name} is ready. To look at: {names}."
        return f"GREEN: {self.kit.name} is ready."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "schema": "fedseg-site-check-1",
            "site": self.kit.name,
            "role": self.kit.role,
            "server": self.kit.address,
            "colour": self.colour.value,
            "verdict": self.verdict,
            "checks": [{"about": about, **asdict(r)} for about, group in self.groups.items() for r in group],
        }


def check_site(kit: InstalledKit, options: CheckOptions) -> CheckPage:
    """Run every check. None of them changes anything but for empty files that it removes again."""
    return CheckPage(
        kit, {about: tuple(r for check in checks for r in _run(check, kit, options)) for about, checks in CHECKS}
    )


def _run(check: Check, kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    try:
        yield from check(kit, options)
    except Exception as error:
        # A check that stumbles must not hide what the others find, nor pass for green.
        name = check.__name__.removeprefix("check_").replace("_", " ")
        yield red(name, f"Could not be checked: {type(error).__name__}: {error}.", "Show this line to the coordinator.")
