"""A site that stands still in the middle of an iteration; for tests only."""

import time

from fedseg.executors.split import SplitExecutor
from fedseg.executors.split_calls import Ask


class StandingStill(SplitExecutor):
    """At one site, its first backward pass in the first round takes ``seconds`` longer than the server waits."""

    def __init__(self, site, seconds):
        super().__init__()
        self.site, self.seconds, self.stood = site, seconds, False

    def _open(self, plan, run_id, fl_ctx):
        trainer = super()._open(plan, run_id, fl_ctx)
        answers = self._answers
        if fl_ctx.get_identity_name() == self.site and not self.stood:
            honest = type(answers).answer

            def slow(call):
                if call.ask is Ask.BACKWARD and not self.stood:
                    self.stood = True
                    time.sleep(self.seconds)
                return honest(answers, call)

            answers.answer = slow
        return trainer
