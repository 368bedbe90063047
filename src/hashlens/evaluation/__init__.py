"""Scores of retrieval, statistics of codes, and doubtful labels."""
