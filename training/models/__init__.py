"""One network a file, written against a Keras namespace, with the recipes that train it."""
