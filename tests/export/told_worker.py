"""A worker that says what it finds around it, and then does as its first line tells it."""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    print(os.getpid(), os.getppid(), os.getsid(0), "keras" in sys.modules, os.environ.get("TOLD"), flush=True)
    asked = sys.stdin.readline().split()
    if asked[0] == "exit":
        sys.exit(int(asked[1]))
    if asked[0] == "raise":
        raise ValueError(asked[1])
    if asked[0] == "signal":
        os.kill(os.getpid(), int(asked[1]))
    if asked[0] == "sleep":
        time.sleep(600)
    sys.stdin.read()  # until nobody waits for it
