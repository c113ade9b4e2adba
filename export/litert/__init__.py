"""Reading and rewriting LiteRT files, and making their int8 better than the converter does."""
