"""Why a ledger keeps a result from leaving. The texts leave the site: they name no file and no patient."""

from __future__ import annotations

from typing import Any

from fedseg.errors import RefusalError

REASON = "privacy"


class LedgerError(RefusalError):
    """The ledger cannot be used, so nothing leaves (reason ``privacy``)."""

    def __init__(self, text: str) -> None:
        super().__init__(REASON, text)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),)


class CountError(RefusalError):
    """There were as many answers of this kind as the site allows (reason ``privacy``)."""

    def __init__(self, what: str, earlier: int, most: int) -> None:
        super().__init__(
            REASON,
            f"{earlier} answer(s) with {what} without noise have left of these patients, and the site allows {most} "
            f"(max_{what} of its policy), so nothing leaves: the difference of two answers tells of the patients who "
            "came between. Ask with noise, or ask the site for another answer.",
        )
        self.what, self.earlier, self.most = what, earlier, most

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.earlier, self.most)


class BudgetError(RefusalError):
    """A release would cost more than the site allows (reason ``privacy``).

    Attributes:
        epsilon, delta: what all releases together would have cost.
        budget: what is allowed.
        earlier: how many releases were there before.
    """

    def __init__(self, epsilon: float, delta: float, budget: float, earlier: int) -> None:
        super().__init__(
            REASON,
            f"With this result the privacy loss on these patients would be epsilon = {epsilon:.4g} at delta = "
            f"{delta:.3g}, over {earlier} earlier release(s) with a guarantee, but the site allows {budget:.4g}. "
            "Nothing leaves: run fewer rounds or more noise, or ask the site for a larger budget (epsilon_budget of "
            "its policy; above 50 also allow_large_epsilon).",
        )
        self.epsilon, self.delta, self.budget, self.earlier = epsilon, delta, budget, earlier

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epsilon, self.delta, self.budget, self.earlier)
