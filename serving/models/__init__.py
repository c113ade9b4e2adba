"""What is served: the store as it is now, which variant answers, and how that is steered."""
