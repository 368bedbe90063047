"""The paper's comparison and its experiment on products."""
