"""Python runs this at the start of every process that has this folder on its path.

FLARE's server writes down every frame that reaches it. A leader stands still while it merges, and an initiator once it
has merged, where a file asks for it; and where another one does, sites call each other without encryption.
"""

import os
import sys
import time
from pathlib import Path

FOLDER = os.environ.get("FEDSEG_TEST_SWARM")
PROGRAMS = "nvflare.private.fed.app."


def write_frames(folder):
    from nvflare.fuel.f3.sfm import conn_manager

    process = conn_manager.ConnManager.process_frame

    def write_and_process(self, connection, frame):
        name = "plain" if (folder / "plain").exists() else "sealed"
        handle = os.open(folder / f"frames-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, bytes(frame))
        os.close(handle)
        return process(self, connection, frame)

    conn_manager.ConnManager.process_frame = write_and_process


def stand_still(folder):
    from fedseg.executors.peers import executor, leading, torrent_executor

    merge, sealed = leading.Leading._merge, executor.SwarmExecutor._sealed

    keep = torrent_executor.BrainTorrentExecutor._keep

    def wait(number, site):
        asked, stalled = folder / f"stall-{number}", folder / f"stalled-{number}"
        if asked.exists() and not stalled.exists():
            (folder / "name").write_text(site)
            (folder / "name").rename(stalled)
            while not (folder / "go").exists():
                time.sleep(0.1)

    def merge_late(self, task, gathered):
        wait(task.round, self.answers.site)
        return merge(self, task, gathered)

    def keep_late(self, number, update):
        wait(number, self.exchange.site)
        return keep(self, number, update)

    torrent_executor.BrainTorrentExecutor._keep = keep_late

    leading.Leading._merge = merge_late
    executor.SwarmExecutor._sealed = lambda self: not (folder / "plain").exists() and sealed(self)


if FOLDER:
    if {f"{PROGRAMS}server.server_train", f"{PROGRAMS}server.runner_process"} & set(sys.orig_argv):
        write_frames(Path(FOLDER))
    if f"{PROGRAMS}client.worker_process" in sys.orig_argv:
        stand_still(Path(FOLDER))
