"""A transform at work: crossing to `tf_keras` and back, and fine-tuning that may be killed."""
