"""An address that nobody has a reason to ask, and jobs that make whoever reads them as FLARE does ask it."""

import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERNS = "fedseg.filters.layers.SharedLayers"


@contextmanager
def canary():
    """A server on this machine; gives its address and the list of what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *facts):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        server.server_close()


def hocon(content, *lines):
    """A JSON object in HOCON, with lines of HOCON before it; HOCON takes JSON as it is."""
    return "\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in content.items())]) + "\n"


def rewritten(job, name, target, change):
    """A copy of a job with ``target`` in the place of ``name``, and what ``change`` makes of its content."""
    folder = job.with_name(f"{job.name}_{len(list(job.parent.iterdir()))}")
    shutil.copytree(job, folder)
    (path,) = folder.rglob(name)
    content = json.loads(path.read_text("utf-8"))
    path.unlink()
    path.with_name(target).write_text(change(content), "utf-8")
    return folder


def telling(client, text):
    """The sites' part of a job with a filter whose argument would carry ``text`` into the privacy record.

    Version 0.5.0 took sets of letters in patterns, so that this one fits most arrays, whatever the text has become.
    """
    filters = [{"path": PATTERNS, "args": {"patterns": ["*", f"*[!{text}]*"]}}]
    return {**client, "task_result_filters": [{"tasks": ["train"], "filters": filters}]}


def attacks(job, address, file):
    """Jobs that read a file of the machine, ask an address, or take its environment, by what they do."""
    client, server, meta = "config_fed_client", "config_fed_server", "meta"
    include_url, include_file = f'include url("{address}NAME")', f'include file("{file}")'

    def conf(name, *lines):
        return rewritten(job, f"{name}.json", f"{name}.conf", lambda content: hocon(content, *lines))

    def variable(text):
        return rewritten(job, f"{client}.json", f"{client}.json", lambda content: json.dumps(telling(content, text)))

    reads = hocon(telling(json.loads(next(job.rglob(f"{client}.json")).read_text("utf-8")), "{training[0][patient]}"))
    found = {
        "client asks": conf(client, include_url.replace("NAME", "client")),
        "server asks": conf(server, include_url.replace("NAME", "server")),
        "meta asks": conf(meta, include_url.replace("NAME", "meta")),
        "meta reads": conf(meta, include_file),
        "client reads": rewritten(job, f"{client}.json", f"{client}.conf", lambda _: f"{include_file}\n{reads}"),
        "environment": variable("{$FEDSEG_TEST_SECRET}"),
        "kit": variable("x{WORKSPACE}"),
        "hocon environment": conf(client, "secret = ${FEDSEG_TEST_SECRET}"),
    }
    extra = Path(shutil.copytree(job, job.with_name(f"{job.name}_extra")))
    (next(extra.rglob(f"{client}.json")).parent / "comm_config.json").write_text("{}", "utf-8")
    return {**found, "more configuration": extra}
