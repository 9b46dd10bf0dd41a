"""What the speed promises are worth, measured: `python -m benchmarks --quick`."""
