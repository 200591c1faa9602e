"""What may leave a site, as plain mathematics: clipping, noise, selection, accounting, and the ledger of releases.

Nothing here knows FLARE, networks or images; the filters put these parts to work.
"""
