"""Settings of a single round: what travels, what is refused, and how many steps a round has."""

import pytest

from fedseg.contract.round_settings import META_KEY, RoundSettings, parse_round_settings, round_steps
from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError


@pytest.mark.parametrize(
    "given", [{}, {"local_epochs": 4}, {"learning_rate": 0.5}, {"local_epochs": 1000}, {"reset_optimizer": True}]
)
def test_what_is_sent_is_what_arrives_and_the_plans_settings_stay_else(given):
    settings, plan = RoundSettings(**given), TrainingSettings(local_epochs=2, learning_rate=0.1)
    assert parse_round_settings({"other": 1, **settings.to_meta()}) == settings
    applied = parse_round_settings(settings.to_meta()).applied(plan)
    assert applied == TrainingSettings(**{**plan.to_dict(), **given})
    assert bool(settings.to_meta()) is bool(given), "a round without settings of its own sends nothing"


@pytest.mark.parametrize(
    "content",
    [
        [], "local_epochs", {"epochs": 1}, {"local_epochs": 0}, {"local_epochs": 1001}, {"local_epochs": True},
        {"local_epochs": 1.0}, {"local_epochs": None}, {"learning_rate": 0}, {"learning_rate": 1.5},
        {"learning_rate": float("nan")}, {"learning_rate": "0.1"}, {"learning_rate": True},
        {"reset_optimizer": 1}, {"reset_optimizer": None}, {"reset_optimizer": "true"},
    ],
)  # fmt: skip
def test_what_a_site_does_not_accept(content):
    with pytest.raises(RefusalError) as error:
        parse_round_settings({META_KEY: content})
    assert error.value.reason == "plan"


@pytest.mark.parametrize(("epochs", "batch", "cases"), [(1, 2, 1), (1, 2, 2), (3, 4, 9), (2, 1, 7)])
def test_steps_are_counted_as_a_loop_over_batches_counts_them(epochs, batch, cases):
    slow = sum(1 for _ in range(epochs) for _ in range(0, cases, batch))
    assert round_steps(TrainingSettings(local_epochs=epochs, batch_size=batch), cases) == slow
