"""The page of an experiment: arms side by side, across sites, what they cost, and what to paste into a paper."""
