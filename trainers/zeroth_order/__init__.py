"""Zeroth-order private training: perturbation directions, loss differences, stages and the log."""
