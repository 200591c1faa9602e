"""What a server sends as a ZIP file, looked at before it is unpacked on the coordinator's machine."""

from __future__ import annotations

from zipfile import ZipFile

from nvflare.fuel.hci.client import file_transfer
from nvflare.fuel.utils.zip_utils import unzip_all_from_file

from fedseg.files.archive_limits import Limits, check_archive

# A long run with all updates kept has some ten thousand files.
_LIMITS = Limits("what the server sent", files=1_000_000)


def look_before_unpacking() -> None:
    """Let FLARE's client unpack no archive that would fill the disk; FLARE has no setting for that."""
    file_transfer.unzip_all_from_file = _unpack


def _unpack(zip_file_path: str, output_dir_name: str) -> None:
    with ZipFile(zip_file_path) as archive:
        check_archive(archive, _LIMITS)
    unzip_all_from_file(zip_file_path, output_dir_name)
