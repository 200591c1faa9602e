"""``fedseg provision``: the kits of a federation, and whom to send them to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedseg.certificates import Certificate
from fedseg.console import err, out
from fedseg.kits import ARCHIVES, ROOT_CERTIFICATE, Federation
from fedseg.project_file import read_project
from fedseg.provisioning import AUTHORITY, provision

_FOR = {"server": "who runs the server", "client": "site", "project_admin": "coordinator", "org_admin": "site admin"}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "provision",
        help="make the kits of a federation",
        description="Make the kits of a federation from a template: for every participant a certificate, start-up "
        "files, the policy files of a site, and fedseg's wheel. Prints what to send to whom, with fingerprints.",
        epilog="example: fedseg provision workspace_templates/three_hospitals --out runs/kits",
    )
    parser.add_argument("template", type=Path, help="folder with project.yml, a copy of one in workspace_templates")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="fedseg's wheel (default: built from the sources)")
    parser.add_argument(
        "--site-policy",
        type=Path,
        metavar="DIR",
        help="folder with fedseg.json, privacy.json, authorization.json (default: site_policy/local beside TEMPLATE)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the kits and say what to do with them."""
    project = read_project(options.template)
    policy = options.site_policy or default_policy(options.template)
    err().print(f"{escape(str(project['name']))}: {len(project['participants'])} participants")
    federation = provision(project, policy, options.out, options.wheel)
    out().print(_table(federation))
    out().print("\n".join(_instructions(federation)), markup=False, emoji=False)
    return 0


def default_policy(template: Path) -> Path:
    """The site policy that lies beside a template."""
    return template.resolve().parent / "site_policy" / "local"


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
