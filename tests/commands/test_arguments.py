"""The command line answers at once: networks and drawing libraries are imported only by a command that works."""

import subprocess
import sys

import pytest

from fedseg.cli import main

HEAVY = ("torch", "monai", "matplotlib")
COUNT = f"""
import sys
from fedseg.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported:", *(name for name in {HEAVY} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--version", "fedseg 0"),
        ("evaluate model", "the following arguments are required"),
        ("simulate job --data d --out o --rounds 0", "--rounds 0"),
        ("nonsense", "invalid choice"),
        ("simulate --wrong", "the following arguments are required"),
        ("describe-split", "the following arguments are required"),
        ("local-federation --rounds 0", "--rounds 0"),
        ("rank one-run", "at least two runs"),
        ("jobs --kit nowhere", "nowhere"),
        ("fetch 7 --kit nowhere --out o", "nowhere"),
        ("resume 7 --kit nowhere", "nowhere"),
        ("audit-log show nowhere", "nowhere does not exist"),
        ("predict m --task nothing --data d --out o", "is no task"),
        ("evaluate m --task brats --data d --out o --overlap 2", "--overlap 2"),
        ("privacy plan --epsilon 8 --delta 1e-5 --rounds 10", "noise multiplier"),
    ],
)
def test_what_needs_no_network_imports_none(line, said):
    done = subprocess.run([sys.executable, "-c", COUNT, *line.split()], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout
    assert said in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("experiment file --out o --wrong", "fedseg experiment"),
        ("export mlflow run --wrong", "fedseg export mlflow"),
        ("audit-log show log one-more", "fedseg audit-log show"),
    ],
)
def test_an_unknown_argument_gets_the_usage_of_its_command(line, command, capsys):
    with pytest.raises(SystemExit) as found:
        main(line.split())
    said = capsys.readouterr().err
    assert found.value.code == 2
    assert said.startswith(f"usage: {command} [-h]")
    assert f"{command}: error: unrecognized arguments: {line.split()[-1]}" in said
