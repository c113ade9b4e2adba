"""The life of a worker: beginning and end, its logs and its figures."""
