"""Speed, as ratios against what users would run instead: `make bench`, or `python -m bench D1 V1`."""
