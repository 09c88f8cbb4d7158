"""Entry of our own processes beside workers, run by path: `PYTHON entry.py MODULE ARGUMENT...`.

`MODULE` is one of this folder, whose `main(arguments)` gives the exit code. As a worker, such a process may run in an
interpreter without Foreserve.
"""

import importlib
import sys


def main() -> int:
    """Returns the exit code."""
    bootstrap = importlib.import_module("bootstrap")  # beside this file, which is why it is found
    reason = bootstrap.refusal()
    if reason:
        sys.stderr.write(reason + "\n")
        return int(bootstrap.CANNOT_RUN)
    bootstrap.provide_foreserve()
    module = importlib.import_module(f"foreserve.runtime.{sys.argv[1]}")
    return int(module.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
