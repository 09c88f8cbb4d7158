"""One module for each headline figure: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
