"""Endpoints, a file a noun."""
