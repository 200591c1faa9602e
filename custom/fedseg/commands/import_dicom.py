"""Placeholder until the command is written."""


def add_parser(subparsers):
    pass
