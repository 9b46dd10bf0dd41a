"""The most anonymous memory of a process that distils, in a process of its own:
`python -m demkd.benchmarks.memory FOLDER SAMPLES VIEWS` prints bytes.

Anonymous memory is what the process cannot give back; pages of a mapped cache are not counted.
"""

import sys
import threading
from pathlib import Path

from demkd.benchmarks.bench import Bench, Scale, epoch_of
from demkd.pipeline.distributed import choose_compute

_SAMPLE_S = 0.005


def anonymous_bytes() -> int:
    """RssAnon of this process.

    Raises:
        OSError: where there is no /proc.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    return int(kilobytes) * 1024


class PeakMemory(threading.Thread):
    """Looks every five milliseconds; `bytes` is the most it saw."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.bytes = max(self.bytes, anonymous_bytes())

    def stop(self) -> int:
        """Stop looking; the most it saw."""
        self._done.set()
        self.join()
        return self.bytes


def main() -> None:
    """Two epochs from three teachers, on noise of the size of CIFAR's images."""
    folder, samples, views = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    peak = PeakMemory()
    peak.start()
    bench = Bench(Scale(samples=samples, views=views, repetitions=1), folder, choose_compute(device="cpu"))
    epoch = epoch_of(bench.cached("resnet8", teachers=3, views=views))
    for _ in range(2):
        epoch()
    print(peak.stop())


if __name__ == "__main__":
    main()
