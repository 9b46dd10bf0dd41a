"""Statistics of runs, for the console and for programs; no network, no training."""
