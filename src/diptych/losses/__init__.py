"""Losses: pure functions on tensors. They compute in float32 at least, also under autocast, and gather nothing."""
