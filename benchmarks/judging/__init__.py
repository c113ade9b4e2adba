"""What the figures mean: pairs of answers, verdicts, the choice, and runs held against runs."""
