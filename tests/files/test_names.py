"""One rule for each kind of name, held against FLARE's own patterns."""

from __future__ import annotations

import doctest

import pytest
from nvflare.apis.utils.format_check import name_check

from fedseg.errors import ConfigurationError
from fedseg.files import names

OF_FLARE = {
    names.SITE: "client",
    names.JOB: "job_name",
    names.HOST: "server",
    names.PERSON: "admin",
    names.ORGANISATION: "org",
}
TRIED = (
    "a", "hospital-a", "Hospital_1", "1", "_a", "-a", "a.b", ".a", "a..b", "..", "", " ", "a b", "a\n", "ü", "a/b",
    "/a", "server", "Server", "a@b.de", "a@b", "@b.de", "a.b-c", "a-", "localhost", "x" * 64, "x" * 65, "x" * 129,
    None, 3, True, ["a"],
)  # fmt: skip


def test_the_example_of_the_module_holds():
    assert doctest.testmod(names) == (0, 2)


@pytest.mark.parametrize("rule", OF_FLARE, ids=lambda rule: rule.kind)
def test_what_is_allowed_flare_takes(rule):
    good = [name for name in TRIED if rule.fits(name)]
    assert good
    for name in good:
        assert not name_check(name, OF_FLARE[rule])[0], name
        assert rule.check("x", name) == name


@pytest.mark.parametrize(
    ("rule", "good"),
    [
        (names.SITE, ["a", "hospital-a", "Hospital_1", "1", "a-", "localhost", "x" * 64]),
        (names.JOB, ["a", "hospital-a", "a.b", "a..b", "server", "x" * 128]),
        (names.PROJECT, ["three_hospitals", "x" * 63]),
        (names.HOST, ["a", "fl.example.org", "localhost", "1"]),
        (names.PERSON, ["a@b.de", "a.b+c@d-e.example.org"]),
        (names.ORGANISATION, ["a", "hospital_a"]),
    ],
)
def test_names_that_are_allowed(rule, good):
    assert all(map(rule.fits, good))


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (names.SITE, ["_a", "-a", "a.b", "..", "", "a b", "a\n", "ü", "a/b", "server", "SERVER", "x" * 65, None, 3]),
        (names.JOB, ["/a", "../a", "a/b", ".a", "", "a\n", "x" * 129, None]),
        (names.PROJECT, ["a/b", "..", "x" * 64]),
        (names.HOST, ["a_b", "-a", "a..b", "a.", "x" * 65]),
        (names.PERSON, ["a", "a@b", "a@b.|e", "a b@c.de"]),
        (names.ORGANISATION, ["a-b", "a b", ""]),
    ],
)
def test_names_that_are_refused(rule, bad):
    for name in bad:
        assert not rule.fits(name), name
        with pytest.raises(ConfigurationError, match=f"the name of {rule.kind}"):
            rule.check("x", name)


def test_names_are_told_apart_in_small_letters():
    assert names.repeated(["a", "B", "A", "c"]) == ["a", "A"]
