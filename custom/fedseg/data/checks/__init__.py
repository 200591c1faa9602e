"""Checks of a datalist: each finding says what to do."""
