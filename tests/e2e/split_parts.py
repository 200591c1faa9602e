"""Sites that stand still in the middle of an iteration, or call another site; for tests only."""

import json
import time
from pathlib import Path

from fedseg.contract.protocol import TEXT
from fedseg.executors.split.executor import SplitExecutor
from fedseg.messages.calls.call import TOPIC, Ask


class StandingStill(SplitExecutor):
    """At one site, its first backward pass in the first round takes ``seconds`` longer than the server waits."""

    def __init__(self, site, seconds):
        super().__init__()
        self.site, self.seconds, self.stood = site, seconds, False

    def load_run(self, plan, run_id, fl_ctx):
        trainer = super().load_run(plan, run_id, fl_ctx)
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


class Intruding(SplitExecutor):
    """One site sends the server's own calls on to another site, which is in the same round, and notes the replies."""

    def __init__(self, site, victim, file):
        super().__init__()
        self.site, self.victim, self.file = site, victim, Path(file)

    def load_run(self, plan, run_id, fl_ctx):
        trainer = super().load_run(plan, run_id, fl_ctx)
        if fl_ctx.get_identity_name() == self.site:
            answers, engine = self._answers, fl_ctx.get_engine()
            honest = type(answers).answer

            def intrude(call):
                if call.ask in (Ask.RECEIVE, Ask.SEND):
                    with engine.new_context() as context:
                        reply = engine.send_aux_request([self.victim], TOPIC, call.to_shareable(), 10.0, context)
                    found = reply.get(self.victim)
                    line = [call.ask.value, found and found.get_return_code(), found and found.get_header(TEXT)]
                    with self.file.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                return honest(answers, call)

            answers.answer = intrude
        return trainer
