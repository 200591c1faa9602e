"""A site's side of training without a server that sees models: what a site gives to other sites, and how one leads."""
