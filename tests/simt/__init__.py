"""The host model of CUDA and what builds it; README.md says more."""
