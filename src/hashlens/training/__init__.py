"""Training: frozen configuration, objectives, one loop for all of them, recipes."""
