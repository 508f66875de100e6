"""Baselines that need no network, beside which every result stands."""
