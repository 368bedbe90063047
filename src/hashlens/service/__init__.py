"""Search over HTTP, and the page."""
