"""Everything the project shows: pages, tables, plots, picture sheets, progress bars."""
