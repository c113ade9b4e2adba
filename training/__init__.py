"""Trains small image classifiers: `data/` one data set a file, `models/` one architecture a file with its recipes."""
