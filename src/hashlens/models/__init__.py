"""Backbones, the latent layer, and the encoder that turns images into codes."""
