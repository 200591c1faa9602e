"""The files of a job, looked at before FLARE reads any of them: which there may be, and what may stand in them.

FLARE takes a job's configuration in JSON, HOCON or YAML, whatever lies there. HOCON includes files of the machine that
reads it and asks addresses; and in every form FLARE puts variables of the reading process in the place of ``{NAME}``,
its environment among them. So a job is JSON with plain values, at the coordinator, the server and the sites alike.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

from fedseg.contract.protocol import CLIENT_FILE, PLAN_FILE
from fedseg.errors import ConfigurationError
from fedseg.files.archive_limits import Limits, check_archive, files_below, shortened
from fedseg.files.documents import parse_json
from fedseg.files.names import JOB, SITE

META_FILE, SERVER_FILE, INITIAL_FILE = "meta.json", "config_fed_server.json", "initial.safetensors"
MODELS_FOLDER, MODEL_ENDING = "models", ".safetensors"
"""Where a job brings models to be scored, and how their files end."""
MOST_BYTES = 2**20
"""Of one JSON file of a job; those of fedseg have a few thousand."""
LIMITS = Limits("the job", files=10_000, size=4 * 2**30)
_FOLDERS = ("", "config", "custom")
_JSON = (PLAN_FILE, SERVER_FILE, CLIENT_FILE)
# FLARE signs every folder of a job that is submitted.
_SIGNATURES = (".__nvfl_sig.json", ".__nvfl_submitter.crt")
_OTHER_FORMS = re.compile(r"\.(conf|ya?ml|xml|ini|toml|properties)(\.default)?$", re.IGNORECASE)
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# FLARE's word for all sites, in `meta.json` only.
_ALL_SITES = "@ALL"
_SUBSTITUTED = re.compile(r"[{}$@]")


@dataclass(frozen=True)
class JobFile:
    """A file of a job.

    Attributes:
        name: inside the job or the app, with ``/``.
        size: bytes.
        read: returns the content.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def check_job_folder(folder: Path) -> None:
    """Look at a job's folder, whose files may still be in another encoding than the UTF-8 in which they will be sent.

    Raises:
        ConfigurationError: names the first file or value that no job may have.
    """
    _check_job(replace(file, read=partial(_in_utf8, file)) for file in _files_of(folder))


def check_app_folder(folder: Path) -> None:
    """Look at the folder of a job's app; see ``check_job_folder``."""
    _check_app(_files_of(folder))


def check_job_archive(content: bytes | Path) -> None:
    """Look at a job as it is submitted: a ZIP file with one folder; see ``check_job_folder``."""
    _check_job(_below_one_folder(_files_in(content)))


def check_app_archive(content: bytes) -> None:
    """Look at a job's app as a server sends it: a ZIP file with what lies in the app; see ``check_job_folder``."""
    _check_app(_files_in(content))


def _check_job(files: Iterable[JobFile]) -> None:
    for file in files:
        app, _, rest = file.name.partition("/")
        if rest and _APP.fullmatch(app):
            _check_app_file(JobFile(rest, file.size, file.read))
        elif file.name == META_FILE:
            check_name(_check_json(file).get("name"))
        elif file.name not in _SIGNATURES:
            raise _unknown(file)


def _check_app(files: Iterable[JobFile]) -> None:
    for file in files:
        _check_app_file(file)


def _check_app_file(file: JobFile) -> None:
    folder, _, name = file.name.rpartition("/")
    top = folder.split("/")[0]
    if folder == "config" and name in _JSON:
        _check_json(file)
    # Whether code may come with a job is a right that FLARE asks for; what it may not be is another form of a job.
    elif not (
        file.name == f"config/{INITIAL_FILE}"
        or (folder == f"config/{MODELS_FOLDER}" and is_model_file(name))
        or (name in _SIGNATURES and top in _FOLDERS)
        or (top == "custom" and not _OTHER_FORMS.search(name))
    ):
        raise _unknown(file)


def is_model_file(name: str) -> bool:
    """Whether this may be the name of a model that a job brings: that of the model, and the ending."""
    return name.endswith(MODEL_ENDING) and SITE.fits(name.removesuffix(MODEL_ENDING))


def model_files(config: Path) -> dict[str, Path]:
    """The models that a job brings to be scored, by name.

    Args:
        config: the job's configuration folder.
    """
    found = sorted((config / MODELS_FOLDER).glob(f"*{MODEL_ENDING}"))
    return {path.name.removesuffix(MODEL_ENDING): path for path in found}


def _unknown(file: JobFile) -> ConfigurationError:
    known = (
        f"a job holds {META_FILE} and, in app/config, {', '.join(_JSON)}, {INITIAL_FILE} and models/NAME{MODEL_ENDING}"
    )
    why = "A job is written in JSON; no other form of configuration is read, and nothing is included."
    return ConfigurationError(f"The job's file {shortened(file.name)}", file.name, f"absent: {known}", why)


def check_name(name: Any) -> None:
    """Refuse a job's name that could be taken for another one's, or could do something where it is printed.

    Args:
        name: as FLARE's facts about the job have it; None where they have none.

    Raises:
        ConfigurationError: see ``files.names.JOB``.
    """
    if name is not None:
        JOB.check(f"{META_FILE}: name", name)


def _check_json(file: JobFile) -> dict[str, Any]:
    name = PurePosixPath(file.name).name
    if file.size > MOST_BYTES:
        raise ConfigurationError(f"The size of the job's file {name}", file.size, f"{MOST_BYTES} bytes at most")
    try:
        content = parse_json(file.read().decode("utf-8"))
    except (OSError, BadZipFile, zlib.error, RuntimeError) as error:
        raise ConfigurationError(f"The job's file {name}", type(error).__name__, "one that can be read") from None
    except ValueError as error:
        raise ConfigurationError(f"The job's file {name}", shortened(str(error)), "JSON") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"The job's file {name}", type(content).__name__, "a JSON object")
    check_values(name, content)
    return content


def check_values(name: str, content: Any) -> None:
    """Refuse a text, or a name, in which FLARE would put something else.

    Args:
        name: of the file.
        content: of the file.

    Raises:
        ConfigurationError: names the place.
    """
    for place, text in _texts(content, name):
        if _SUBSTITUTED.search(text) and not (text == _ALL_SITES and name == META_FILE):
            why = "FLARE would put values of the machine that reads the job in their place."
            raise ConfigurationError(shortened(place), shortened(text), "a text without {, }, $ and @", why)


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON document, names of values included, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{place}: a name", name
            yield from _texts(inner, f"{place}: {name}" if ": " not in place else f"{place}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")


def _in_utf8(file: JobFile) -> bytes:
    content = file.read()
    return content.decode(json.detect_encoding(content)).encode()


def _files_of(folder: Path) -> Iterator[JobFile]:
    for name, path, size in files_below(folder, LIMITS):
        yield JobFile(name, size, path.read_bytes)


def _files_in(content: bytes | Path) -> Iterator[JobFile]:
    """The files of an archive, each once: what is looked at is what will be unpacked."""
    try:
        with ZipFile(BytesIO(content) if isinstance(content, bytes) else content) as archive:
            for entry in check_archive(archive, LIMITS):
                if not entry.is_dir():
                    yield JobFile(entry.filename, entry.file_size, partial(archive.read, entry))
    except (BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        # An encrypted archive is a RuntimeError.
        raise ConfigurationError("The job", type(error).__name__, "a readable ZIP file") from None


def _below_one_folder(files: Iterable[JobFile]) -> Iterator[JobFile]:
    first: str | None = None
    for file in files:
        folder, _, rest = file.name.partition("/")
        if not rest or first not in (None, folder):
            raise ConfigurationError("The job's file", shortened(file.name), "in the one folder of the job")
        first = folder
        yield JobFile(rest, file.size, file.read)
