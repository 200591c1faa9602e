"""JSON as the only form of configuration that a process of FLARE reads."""

from __future__ import annotations

from typing import Any, NoReturn

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.utils.config import Config, ConfigFormat, ConfigLoader
from nvflare.fuel.utils.config_factory import ConfigFactory


class RefusingLoader(ConfigLoader):
    """Stands in the place of FLARE's reader of HOCON or YAML."""

    def load_config(self, file_path: str) -> Config:
        self._refuse()

    def load_config_from_str(self, config_str: str) -> Config:
        self._refuse()

    def load_config_from_dict(self, config_dict: dict[str, Any]) -> Config:
        self._refuse()

    def _refuse(self) -> NoReturn:
        # FLARE turns a ValueError into the answer to whoever submits such a job.
        raise ValueError(
            f"A job is written in JSON, not in {self.format.value}: HOCON and YAML can include files and addresses."
        )


class JsonOnly(FLComponent):
    """A component of ``local/resources.json`` of server and sites, as old as its process.

    FLARE reads configuration in whatever form it finds, at submission before any other component could look at it, and
    has no setting for that. HOCON reads files and asks addresses while it is read.
    """

    def __init__(self) -> None:
        super().__init__()
        read_json_only()


def read_json_only() -> None:
    """Let this process read no other form of configuration, from now until it ends.

    Every component that a kit declares for the whole life of a process asks for it, so that a kit in which ``JsonOnly``
    is missing is none that reads HOCON.
    """
    for form in ConfigFormat:
        if form != ConfigFormat.JSON:
            ConfigFactory._fmt2Loader[form] = RefusingLoader(form)


def reads_json_only() -> bool:
    """Whether this process reads no other form of configuration."""
    loaders = ConfigFactory._fmt2Loader
    return all(form == ConfigFormat.JSON or isinstance(loaders.get(form), RefusingLoader) for form in ConfigFormat)
