"""Deterministic record and replay of whole multi-core x86-64 machines."""
