"""Which parts of a job cannot work together: each declares what it needs of the sites, provides and withholds.

A component class (rule, selection, workflow, training hook, filter...) has the class attributes ``needs``, ``provides``
and ``withholds``, sets of the words below; one without them needs, provides and withholds nothing. Where they follow
from arguments, a part of the server sets its own in ``__init__``; of parts at the sites only the class counts, since
the server, which asks too, builds none of them.

>>> class Looks:
...     needs = frozenset({TRAIN_LOSS})
>>> class Hides:
...     withholds = frozenset({TRAIN_LOSS, SCORES})
>>> conflict([Looks(), Hides()])
'Looks needs the training loss of every site, which Hides withholds.'
>>> conflict([Looks(), Looks])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedseg.errors import ConfigurationError

TRAIN_LOSS, VAL_LOSS, SCORES, DURATION = "train_loss", "val_loss", "scores", "duration"
STATISTICS, EPSILON = "statistics", "epsilon"
VALUES, SCALING, ONE_START, SAME_SITES = "values", "scaling", "one_start", "same_sites"
EVERY_COORDINATE, LOCAL_STEPS, PLAIN_STEPS = "every_coordinate", "local_steps", "plain_steps"
COUNTED_STEPS, KNOWN_DRAWS, COUNTED_DRAWS = "counted_steps", "known_draws", "counted_draws"
EVERY_CASE, EVERY_REGION = "every_case", "every_region"
OWN_MODELS, PERSONAL_MODELS = "own_models", "personal_models"
OWN_LAYERS = "own_layers"
CARRIED = "carried"
LAST_STEP = "last_step"

MEANINGS: Mapping[str, str] = {
    TRAIN_LOSS: "the training loss of every site",
    VAL_LOSS: "the validation loss of every site",
    SCORES: "validation scores of every round",
    DURATION: "the duration of each site's work",
    STATISTICS: "statistics of the sites' data",
    EPSILON: "an epsilon in every report",
    VALUES: "the values of each update",
    SCALING: "updates that the server can scale one by one",
    ONE_START: "updates that all start from the model of the round before",
    SAME_SITES: "the same sites in every round",
    EVERY_COORDINATE: "every coordinate of each update",
    LOCAL_STEPS: "a part in the sites' training steps",
    PLAIN_STEPS: "local steps along the gradient of the loss alone",
    COUNTED_STEPS: "local steps whose number says how far a site went",
    KNOWN_DRAWS: "sites that are all drawn with known probabilities",
    EVERY_CASE: "every training case in each local epoch",
    EVERY_REGION: "cases in which every region is drawn",
    OWN_MODELS: "a model of each site that may leave as it is",
    PERSONAL_MODELS: "a personal model at each site",
    OWN_LAYERS: "layers that each site keeps for itself",
    LAST_STEP: "models of the sites that are those of their last steps",
    CARRIED: "a model that is carried from site to site",
    COUNTED_DRAWS: "a rule that counts a site as often as it was drawn, whatever its size",
}
"""The closed list of what a part can need of the sites, as the end of a sentence."""
COMPARED_UPDATES = frozenset({VALUES, ONE_START})
"""What a rule needs that looks at the updates of a round side by side."""
PROVIDED = frozenset({EPSILON, COUNTED_DRAWS, OWN_LAYERS, PERSONAL_MODELS, CARRIED})
"""What no job has unless one of its parts provides it; everything else is there unless a part withholds it."""


def conflict(parts: Iterable[object], whole: bool = True) -> str | None:
    """Why these parts of a job cannot work together, as a sentence; None where they can.

    Args:
        parts: components, or their classes; anything else that may need or withhold something.
        whole: whether these are all parts of a job, so that what none of them provides is missing.
    """
    found = _find(list(parts), whole)
    return None if found is None else found[1]


def check_parts(parts: Iterable[object], whole: bool = True) -> None:
    """Refuse a job whose parts cannot work together; see ``conflict``.

    Raises:
        ConfigurationError: names two of them, and what one needs and the other withholds.
    """
    if (found := _find(list(parts), whole)) is not None:
        raise ConfigurationError("job", found[0], "made of parts that work together", found[1])


def declared(part: object, kind: str) -> frozenset[str]:
    """What a part declares under ``needs``, ``provides`` or ``withholds``.

    Raises:
        ValueError: a word is not one of ``MEANINGS``.
    """
    words: Any = getattr(part, kind, frozenset())
    if unknown := sorted(set(words) - set(MEANINGS)):
        raise ValueError(f"{name_of(part)}.{kind} holds {unknown}, which {__name__} does not know.")
    return frozenset(words)


def name_of(part: object) -> str:
    """What messages call a part: its ``part_title`` where it has one, else its class."""
    title = getattr(part, "part_title", None)
    return title if isinstance(title, str) else part.__name__ if isinstance(part, type) else type(part).__name__


def _find(parts: Sequence[object], whole: bool) -> tuple[str, str] | None:
    """The names of the first parts that cannot work together, and why."""
    for part in parts:
        name = name_of(part)
        for need in (each for each in MEANINGS if each in declared(part, "needs")):
            others = (other for other in parts if other is not part)
            thief = next((name_of(other) for other in others if need in declared(other, "withholds")), None)
            if thief is not None:
                return f"{name} with {thief}", f"{name} needs {MEANINGS[need]}, which {thief} withholds."
            if whole and need in PROVIDED and not any(need in declared(other, "provides") for other in parts):
                return name, f"{name} needs {MEANINGS[need]}, which no part of the job provides."
    return None
