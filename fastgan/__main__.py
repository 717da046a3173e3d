"""`python -m fastgan` and the `fastgan` command."""
