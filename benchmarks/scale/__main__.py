"""`python -m benchmarks.scale`."""

import sys

import console
from benchmarks.scale import app

if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("page")
    console.run(app)
