"""What contributors run: resource tables, crossovers, the GPU's run, the benchmark's page. Not installed."""
