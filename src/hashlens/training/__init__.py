"""Learning codes from class labels: configuration, objectives, one loop, recipes."""
