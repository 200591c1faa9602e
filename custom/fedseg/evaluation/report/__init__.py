"""The summary of a run as tables, figures and one page for people."""
