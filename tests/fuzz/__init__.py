"""Differential fuzzer of TrainStep: `PYTHONPATH=tests python -m fuzz.run`; README.md says more."""
