"""Speed beside recall, against other libraries, in one run."""
