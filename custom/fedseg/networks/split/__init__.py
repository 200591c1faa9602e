"""Networks cut in two: stages, parts, and what crosses a cut."""
