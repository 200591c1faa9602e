"""A network trained in two parts: the site's half, the server's half, and a round of both."""
