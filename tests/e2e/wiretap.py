"""Components with which tests see every message that a simulated server receives; never part of the product."""

import json
import threading
from pathlib import Path

import numpy as np
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet import cell, core_cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

UNKNOWN_TOPIC = "test.unknown"


class WireTap(FLComponent):
    """Writes each message, decoded, as a line of JSON into ``file``.

    With the first result it also asks every site for something unknown, about which FLARE logs an error there: so that
    tests see where FLARE's own log messages go.
    """

    def __init__(self, file):
        super().__init__()
        self.file, self.lock, self.asked = Path(file), threading.Lock(), False
        for module in (cell, core_cell):
            module.decode_payload = self.listen(module.decode_payload)

    def listen(self, decode):
        def decode_and_write(message, *args, **kwargs):
            decode(message, *args, **kwargs)
            self.write(message)

        return decode_and_write

    def write(self, message):
        def header(stream, plain):
            return message.get_header(stream) or message.get_header(plain)

        entry = {
            "channel": header(StreamHeaderKey.CHANNEL, MessageHeaderKey.CHANNEL),
            "topic": header(StreamHeaderKey.TOPIC, MessageHeaderKey.TOPIC),
            "site": str(message.get_header(MessageHeaderKey.ORIGIN)).split(".")[0],
            "payload": readable(message.payload),
        }
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def handle_event(self, event_type, fl_ctx):
        if event_type == EventType.BEFORE_PROCESS_SUBMISSION and not self.asked:
            self.asked = True
            fl_ctx.get_engine().send_aux_request(
                targets=None, topic=UNKNOWN_TOPIC, request=Shareable(), timeout=0.0, fl_ctx=fl_ctx
            )


class AskForModels(Controller):
    """A second workflow, which asks every site for its own model, as FLARE's cross-site evaluation does."""

    def start_controller(self, fl_ctx):
        pass

    def control_flow(self, abort_signal, fl_ctx):
        task = Task("submit_model", DXO(DataKind.METRICS, data={"ask": 1.0}).to_shareable(), timeout=15)
        self.broadcast_and_wait(task, fl_ctx, min_responses=0, abort_signal=abort_signal)

    def stop_controller(self, fl_ctx):
        pass

    def process_result_of_unknown_task(self, client, task_name, client_task_id, result, fl_ctx):
        pass


def readable(value):
    """Any payload as JSON; of an array its type and shape, of bytes what can be read in them."""
    if isinstance(value, dict):
        return {str(k): readable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [readable(v) for v in value]
    if isinstance(value, np.ndarray):
        return {"array": str(value.dtype), "shape": list(value.shape)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, FLContext):
        return readable(value.get_all_public_props())
    return {"object": type(value).__name__, "text": str(getattr(value, "value", ""))}
