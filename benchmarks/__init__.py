"""One script per claim; `python -m benchmarks` runs them all and writes benchmarks/results/."""
