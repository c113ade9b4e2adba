"""The report: Markdown, one page, plots, and what of them is published."""
