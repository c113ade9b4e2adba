"""The service under load, and beside it the application one would write by hand, in one run: `make load`."""
