"""JSON files: read with a reason where they cannot be, and written as a whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError


def read_json(path: Path) -> Any:
    """The content of a JSON file of a job, or a ``ConfigurationError`` that names it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(path.name, str(path), f"a readable JSON file ({error})") from None
