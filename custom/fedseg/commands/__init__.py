"""One module for each ``fedseg`` subcommand: arguments in, calls to the package, words out.

A module has ``add_parser(subparsers)``, which sets ``run`` as the parser's default; no logic of its own lives here.
"""
