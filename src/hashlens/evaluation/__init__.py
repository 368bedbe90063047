"""Scores of retrieval."""
