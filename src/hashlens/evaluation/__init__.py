"""Scores of retrieval: metrics, the runner that recomputes them, reports and plots."""
