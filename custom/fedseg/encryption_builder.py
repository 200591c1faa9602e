"""The keys of encrypted jobs, as one step of FLARE's provisioning: a project file names this builder."""

from __future__ import annotations

import os
from pathlib import Path

from nvflare.lighter.spec import Builder, Project, ProvisionContext

from fedseg.executors.site_profile import CONTEXT_FILE, SERVER_CONTEXT_FILE
from fedseg.privacy.encryption_context import KEY_NAME_FILE, make_contexts, public_context, secret_context


class EncryptionContexts(Builder):
    """Puts the sites' shared secret key into each site's start-up folder, and only the parameters into the server's.

    The key is made once and kept with the project's root key, so that a site that is added later gets the same. It
    protects the updates from whoever runs the server, not from whoever provisions: that person holds every key.

    In the project file this builder stands after ``CertBuilder`` and before ``SignatureBuilder``, which then signs the
    start-up folders.
    """

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write ``client_context.tenseal`` and ``server_context.tenseal``, and beside the latter the key's short name.

        Raises:
            EncryptionError: the kept key is damaged, or the server's context would hold it.
        """
        kept, kept_public = (Path(ctx.get_state_dir()) / name for name in (CONTEXT_FILE, SERVER_CONTEXT_FILE))
        if not (kept.exists() and kept_public.exists()):
            secret, public = make_contexts()
            _write(kept, secret)
            _write(kept_public, public)
        secret, public = kept.read_bytes(), kept_public.read_bytes()
        public_context(public)
        server = Path(ctx.get_kit_dir(project.get_server()))
        _write(server / SERVER_CONTEXT_FILE, public)
        _write(server / KEY_NAME_FILE, secret_context(secret).key.encode())
        for site in project.get_clients():
            _write(Path(ctx.get_kit_dir(site)) / CONTEXT_FILE, secret)


def _write(path: Path, content: bytes) -> None:
    """Write a key: for its owner only, from the first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
