import pickle

import pytest

from fedseg.errors import ConfigurationError, RefusalError


@pytest.mark.parametrize(
    "error", [RefusalError("loss", "Not finite."), ConfigurationError("seed", -1, "0 or more", "Mend it.")]
)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_configuration_error_names_value_and_what_is_allowed():
    text = str(ConfigurationError("training.threads", 0, "a whole number of at least 1", "Give 1."))
    assert text == "training.threads is 0, but must be a whole number of at least 1. Give 1."
