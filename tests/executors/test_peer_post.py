"""Who another site of a swarm is, and that calls to it and of it are encrypted: what a site refuses."""

import pytest
from nvflare.apis.client import from_dict

from fedseg.errors import RefusalError
from fedseg.executors.peers.post import places_of


def clients(*told):
    return [from_dict(each) for each in told]


def test_sites_under_their_own_names_have_their_places():
    told = clients({"name": "alpha"}, {"name": "beta", "fqcn": "beta"}, {"name": "gamma", "fqcn": "gamma.inner"})
    assert places_of(told) == {"alpha": "alpha", "beta": "beta", "gamma": "gamma.inner"}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "alpha"}], "puts the site beta at alpha"),
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "server.beta"}], "puts the site beta at server.beta"),
        ([{"name": "alpha"}, {"name": "beta", "fqcn": "betah"}], "puts the site beta at betah"),
        ([{"name": "alpha"}, {"name": "alpha"}], "names the site alpha twice"),
    ],
)
def test_no_site_has_the_place_or_the_name_of_another(told, why):
    with pytest.raises(RefusalError, match=why) as found:
        places_of(clients(*told))
    assert found.value.reason == "privacy"
