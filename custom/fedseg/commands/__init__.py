"""One module for each ``fedseg`` subcommand: arguments in, calls to the package, words out."""
