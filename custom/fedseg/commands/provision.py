"""``fedseg provision``: the kits of a federation, and whom to send them to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.commands.arguments import Command
from fedseg.console import err, out
from fedseg.deployment.kits.add_or_renew import add_site, entry_of, renew_kit
from fedseg.deployment.kits.authority import AUTHORITY
from fedseg.deployment.kits.certificates import Certificate
from fedseg.deployment.kits.installed_kit import ROOT_CERTIFICATE
from fedseg.deployment.kits.project_file import PROJECT_FILE, read_project
from fedseg.deployment.kits.provisioned_kits import ARCHIVES, Federation
from fedseg.deployment.kits.provisioning import provision

_FOR = {"server": "who runs the server", "client": "site", "project_admin": "coordinator", "org_admin": "site admin"}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    files = "folder with fedseg.json, privacy.json, authorization.json"
    add = "make the kit of one more site of the federation in --out; nobody else's changes"
    renew = "make somebody's kit in --out anew, with a new key and certificate; nobody else's changes"
    command.path("template", "folder with project.yml, a copy of one in workspace_templates")
    command.path("--out", "a new or empty folder", "DIR", required=True)
    command.path("--wheel", "fedseg's wheel (default: built from the sources)", "FILE")
    command.path("--site-policy", f"{files} (default: site_policy/local beside TEMPLATE)", "DIR")
    with command.only_one():
        command.value("--add-site", add, metavar="NAME")
        command.value("--renew", renew, metavar="NAME")


def run(options: argparse.Namespace) -> int:
    """``fedseg provision``: make the kits of a federation.

    Make the kits of a federation from a template: for every participant a certificate, start-up files, the policy files
    of a site, and fedseg's wheel. Prints what to send to whom, with fingerprints. With --add-site, the kit of one more
    site for a federation that exists; with --renew, somebody's kit anew.

    example: fedseg provision workspace_templates/three_hospitals --out runs/kits
    """
    project = read_project(options.template)
    policy = options.site_policy or default_policy(options.template)
    if options.add_site is not None or options.renew is not None:
        make, name = (add_site, options.add_site) if options.renew is None else (renew_kit, options.renew)
        federation = make(project, name, policy, options.out, options.wheel)
        out().print(_table(federation))
        out().print("\n".join(_for_one(federation, project, options)), markup=False, emoji=False)
        return 0
    err().print(f"{escape(str(project['name']))}: {len(project['participants'])} participants")
    federation = provision(project, policy, options.out, options.wheel)
    out().print(_table(federation))
    out().print("\n".join(_instructions(federation)), markup=False, emoji=False)
    return 0


def default_policy(template: Path) -> Path:
    """The site policy that lies beside a template."""
    return template.resolve().parent / "site_policy" / "local"


def _for_one(federation: Federation, project: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """What to do with the kit of one participant that was added or renewed."""
    (kit,) = federation.kits
    lines = [
        f"Give {kit.name} its archive {kit.archive}, and nobody else: it holds a private key.",
        "SHA-256 of the archive, to be compared by telephone:",
        f"  {kit.sha256}  {kit.archive.name}",
        f"SHA-256 of the root certificate, the same as in every other kit, valid until {_day(federation.root)}:",
        f"  {federation.root.fingerprint}",
        "Everybody else goes on with the kits they have.",
    ]
    if kit.certificate.not_after >= federation.root.not_after:
        lines.append("This certificate ends with the root: by then, everybody needs a new kit of a new federation.")
    if options.renew is not None:
        lines.append("The old certificate stays good until it ends: let the old kit be deleted once the new one works.")
    if all(entry["name"] != kit.name for entry in project["participants"]):
        entry = ", ".join(f"{key}: {json.dumps(value)}" for key, value in entry_of(project, kit.name).items())
        lines.append(f"Write it down in {options.template / PROJECT_FILE}, under participants:")
        lines.append(f"  - {{{entry}}}")
    return lines


def _instructions(federation: Federation) -> list[str]:
    """What to send to whom, and by which numbers the others know that they got the right thing."""
    root, archives = federation.root, federation.folder / ARCHIVES
    return [
        f"Give each participant its own archive from {archives}, and nobody else's: it holds a private key.",
        "SHA-256 of the archives, to be compared by telephone:",
        *(f"  {kit.sha256}  {kit.archive.name}" for kit in federation.kits),
        f"SHA-256 of the root certificate (in every kit, startup/{ROOT_CERTIFICATE}), valid until {_day(root)}:",
        f"  {root.fingerprint}",
        f"Keep {federation.folder / AUTHORITY} to yourself: whoever has it can be anybody in this federation.",
    ]


def _table(federation: Federation) -> Table:
    table = Table("for", "who", "certificate valid until")
    for kit in federation.kits:
        table.add_row(escape(kit.name), _FOR.get(kit.role, kit.role), _day(kit.certificate))
    return table


def _day(certificate: Certificate) -> str:
    return f"{certificate.not_after:%Y-%m-%d}"
