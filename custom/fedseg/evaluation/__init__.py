"""What a model or a run is worth: scores of saved models, comparisons, rankings, and the summary of a run."""
