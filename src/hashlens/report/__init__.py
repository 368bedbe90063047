"""Pictures, tables, pages and progress: what the project shows."""
