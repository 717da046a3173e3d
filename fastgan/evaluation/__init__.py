"""Protocols of the literature and the measuring of runs: `fastgan eval`."""
