"""Scores of predictions against the truth: pure functions on tensors."""
