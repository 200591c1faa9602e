"""The keys of encrypted jobs, as one step of FLARE's provisioning: a project file names this builder."""

from __future__ import annotations

from pathlib import Path

from nvflare.lighter.spec import Builder, Project, ProvisionContext

from fedseg.privacy.encryption.context import KEY_NAME_FILE, make_contexts, public_context, secret_context, write_key
from fedseg.site.profile import CONTEXT_FILE, SERVER_CONTEXT_FILE


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
            write_key(kept, secret)
            write_key(kept_public, public)
        secret, public = kept.read_bytes(), kept_public.read_bytes()
        public_context(public)
        server = Path(ctx.get_kit_dir(project.get_server()))
        write_key(server / SERVER_CONTEXT_FILE, public)
        write_key(server / KEY_NAME_FILE, secret_context(secret).key.encode())
        for site in project.get_clients():
            write_key(Path(ctx.get_kit_dir(site)) / CONTEXT_FILE, secret)
