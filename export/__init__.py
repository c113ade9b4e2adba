"""Converts trained models to what production runs, and proves what each conversion cost."""
