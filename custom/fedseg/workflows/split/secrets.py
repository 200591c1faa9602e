"""By what a site knows the server's direct calls: a secret of its own, which comes with the task of the round."""

from __future__ import annotations

import secrets
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.messages.calls.call import SECRET
from fedseg.workflows.run.presence import Listening, Presence

_BYTES = 16


class SiteSecrets:
    """A random secret for each site.

    No other site may know it, so each has its own. It lives as long as this process of the server, and not for one
    round: a site that has missed the end of a round must know the first call of the next one.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, site: str) -> str:
        """The secret of a site."""
        return self._known.setdefault(site, secrets.token_hex(_BYTES))


class Handing(Listening):
    """FLARE's communicator of a workflow, which also gives each site its secret along with the task ``train``.

    Here the message is the one site's own already, and FLARE names the site by the token with which it asked. In the
    callbacks of a task that goes to all sites the message is still everybody's.
    """

    def __init__(self, communicator: Any, presence: Presence, secrets_of_sites: SiteSecrets) -> None:
        super().__init__(communicator, presence)
        self._secrets = secrets_of_sites

    def process_task_request(self, client: Client, fl_ctx: FLContext) -> tuple[str, str, Shareable | None]:
        """A site asks for its next task."""
        task, task_id, message = self._communicator.process_task_request(client, fl_ctx)
        if task == AppConstants.TASK_TRAIN and message is not None:
            message.set_header(SECRET, self._secrets.of(client.name))
        return task, task_id, message
