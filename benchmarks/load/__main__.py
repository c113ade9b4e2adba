"""`python -m benchmarks.load`."""

import console
from benchmarks.load import main

if __name__ == "__main__":
    application = console.app("Load tests.")
    application.command("run")(main)
    console.run(application)
