"""What tests of encrypted runs add to a job, and no product has: a site that drops out, an ear at the server."""

import json
from pathlib import Path

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey

from fedseg.contract.update import Stage
from fedseg.errors import RefusalError
from fedseg.filters.base import UpdateFilter


class DropOut(UpdateFilter):
    """Lets nothing out of one site in one round."""

    stage = Stage.CLIP

    def __init__(self, site, round_number):
        super().__init__()
        self.site, self.round_number = site, round_number

    def apply(self, update, context):
        if (context.site, context.round_number) == (self.site, self.round_number):
            raise RefusalError("error", "Dropped out.")
        return update.after(self.step(), update.arrays)


class Ear(FLComponent):
    """Appends the bytes of every result that the server receives to ``file``: arrays as they are, the rest as text."""

    def __init__(self, file):
        super().__init__()
        self.file = Path(file)

    def handle_event(self, event_type, fl_ctx):
        if event_type == EventType.BEFORE_TASK_RESULT_FILTER:
            with self.file.open("ab") as file:
                file.write(content(fl_ctx.get_prop(FLContextKey.TASK_RESULT)))


def content(value):
    """All bytes of a message."""
    if isinstance(value, dict):
        return b"".join(str(key).encode() + content(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return b"".join(map(content, value))
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()
