"""Experiments: arms, seeds and folds of one definition, all of them trained and scored on the same test cases."""
