"""Run a command and print what it took: ``python -m benchmarks.launch COMMAND ARG …``.

A process of its own, since the peak memory that the system reports for a child is never below that of its parent.
"""

import json
import os
import subprocess
import sys
import time

start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"code": code, "seconds": seconds, "peak_mb": usage.ru_maxrss / 1024}))
