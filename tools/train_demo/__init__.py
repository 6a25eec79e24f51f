"""Trains the demo checkpoints: tiny Stable Diffusion 1.5 models of pictures drawn by code."""
