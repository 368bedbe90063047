"""Speed next to other tools, in one run."""
