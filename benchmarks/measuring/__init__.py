"""One process a variant: times, answers, memory, and the machine's own peak."""
