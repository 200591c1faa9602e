"""Metrics per case, tables, figures and reports.

Nothing here trains or imports FLARE.
"""
