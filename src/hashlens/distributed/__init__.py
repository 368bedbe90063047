"""Encoding and search on Ray."""
