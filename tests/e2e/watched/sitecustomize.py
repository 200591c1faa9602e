"""Python runs this at the start of every process that has this folder on its path.

Each address that is asked for is noted, and at the server each message that a job's process receives.
"""

import json
import os
import sys

FILE = os.environ.get("FEDSEG_TEST_SOCKETS")
EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def note(event, arguments):
    if event in EVENTS:
        # `getaddrinfo` is asked for host and port, the others for one address.
        address = arguments[:2] if event == "socket.getaddrinfo" else arguments[-1]
        line = json.dumps({"program": sys.orig_argv, "event": event, "address": address}, default=repr)
        handle = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)


if FILE:
    sys.addaudithook(note)
if os.environ.get("FEDSEG_TEST_WIRE") and "nvflare.private.fed.app.server.runner_process" in sys.orig_argv:
    from wiretap import WireTap

    WireTap(os.environ["FEDSEG_TEST_WIRE"])
