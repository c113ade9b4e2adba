"""A worker that crashes as LiteRT, hangs as Keras, leaves a child as OpenVINO, and asks the impossible of ONNX."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

from export import parity, worker


def main() -> int:
    line = sys.stdin.buffer.readline()
    form = json.loads(line)["request"].get("format", "")
    if form == "litert":
        print("about to fall over", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if form == "keras":
        time.sleep(600)
    if form == "openvino":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"left {child.pid}", file=sys.stderr, flush=True)
        return 1
    parity.FLOORS["fp32"] = parity.Floor(0.0, 0.99)
    sys.stdin = io.TextIOWrapper(Rest(line))
    return worker.main()


class Rest(io.BufferedReader):
    """Standard input with its first line put back."""

    def __init__(self, line: bytes) -> None:
        super().__init__(io.FileIO(0, closefd=False))
        self.line = line

    def readline(self, size: int | None = -1, /) -> bytes:
        line, self.line = self.line, b""
        return line


if __name__ == "__main__":
    os._exit(main())
