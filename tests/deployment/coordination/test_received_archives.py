"""A server whose results would fill the coordinator's disk."""

import zipfile

import pytest
from nvflare.fuel.hci.client import file_transfer
from nvflare.fuel.hci.client.file_transfer import FileTransferModule
from nvflare.fuel.utils.zip_utils import unzip_all_from_file

from fedseg.deployment.coordination.received_archives import look_before_unpacking
from fedseg.errors import ConfigurationError


class Quiet:
    """As much of FLARE's session as unpacking asks."""

    def debug(self, text):
        pass

    def fire_session_event(self, kind, text):
        pass


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(file_transfer, "unzip_all_from_file", unzip_all_from_file)


def received(folder, files):
    path = folder / "workspace.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def test_what_a_server_sends_is_looked_at_before_it_is_unpacked(watched, tmp_path):
    bomb = received(tmp_path, ((f"run/{n}", bytes(2**20)) for n in range(100)))
    look_before_unpacking()
    with pytest.raises(ConfigurationError, match="size of what the server sent is 104857600, but must be at most 20"):
        FileTransferModule._unzip_file(Quiet(), str(bomb))
    assert list((tmp_path / "workspace").iterdir()) == []


def test_results_are_unpacked(watched, tmp_path):
    path = received(tmp_path, (("run/a/b.json", b"{}"), ("log.txt", b"line\n" * 1000)))
    look_before_unpacking()
    FileTransferModule._unzip_file(Quiet(), str(path))
    assert (tmp_path / "workspace" / "run" / "a" / "b.json").read_bytes() == b"{}"
    assert not path.exists()
