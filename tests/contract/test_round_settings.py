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
        {"epoch_cases": 0}, {"epoch_cases": 1.0}, {"epoch_cases": True}, {"epoch_cases": 1_000_001},
        {"epoch_cases": None},
    ],
)  # fmt: skip
def test_what_a_site_does_not_accept(content):
    with pytest.raises(RefusalError) as error:
        parse_round_settings({META_KEY: content})
    assert error.value.reason == "plan"


@pytest.mark.parametrize(("epochs", "batch", "cases"), [(1, 2, 1), (1, 2, 2), (3, 4, 9), (2, 1, 7)])
@pytest.mark.parametrize("most", [None, 1, 3, 9, 50])
def test_steps_are_counted_as_a_loop_over_batches_counts_them(epochs, batch, cases, most):
    slow = sum(1 for _ in range(epochs) for _ in range(0, len(range(cases)[:most]), batch))
    assert round_steps(TrainingSettings(local_epochs=epochs, batch_size=batch), cases, most) == slow


def test_a_shortened_epoch_travels_but_is_no_setting_of_the_plan():
    given = RoundSettings(epoch_cases=7)
    assert parse_round_settings(given.to_meta()) == given
    assert given.applied(TrainingSettings()) == TrainingSettings()


def test_what_a_site_is_given_stands_in_the_place_of_what_the_round_says():
    settings = RoundSettings(local_epochs=3, reset_optimizer=True)
    assert settings.joined(RoundSettings()) == settings
    both = settings.joined(RoundSettings(local_epochs=2, epoch_cases=5))
    assert both == RoundSettings(local_epochs=2, reset_optimizer=True, epoch_cases=5)
