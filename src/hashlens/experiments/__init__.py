"""The paper's tables and figures: one driver, a TOML file each."""
