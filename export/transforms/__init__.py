"""Transforms: one a file, a Keras model in and a Keras model out."""
