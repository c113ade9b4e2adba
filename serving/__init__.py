"""Answers REST predictions with the variants in the store; never imports tensorflow or keras."""
