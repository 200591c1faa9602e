"""The page of results: every figure says which version was measured, and how."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "explanation" / "results.md").read_text("utf-8")


def sections():
    """Heading of each section, and its text with that of the section above it."""
    above = ""
    for level, heading, text in re.findall(r"^(##+) (.+)\n((?:(?!^##+ ).*\n?)*)", TEXT, re.MULTILINE):
        above = text if level == "##" else above
        yield heading, text, f"{above}{text}"


@pytest.mark.parametrize(("text", "both"), [pytest.param(t, b, id=heading) for heading, t, b in sections()])
def test_a_table_has_a_version_and_a_command(text, both):
    if re.search(r"^\|\s*---", text, re.MULTILINE):
        assert re.search(r"^Measured with version \d\.\d\.\d", both, re.MULTILINE)
        assert re.search(r"^```bash\n(?:.*\n)*?.*(?:fedseg|python|scripts/)", both, re.MULTILINE)
