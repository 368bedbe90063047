"""Scores of retrieval, and doubtful labels."""
