"""Datalists, intake of the usual layouts, dataset checks, partition into sites, phantoms.

Nothing here trains or imports FLARE.
"""
