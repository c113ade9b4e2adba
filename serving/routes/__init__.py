"""The service's own routes, and the description of all."""
