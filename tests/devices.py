"""The devices that the tests of shared weights run on, each in real processes.

`host-copy` is the stand-in of `runtime.device_host`. `driver` is `runtime.device_cuda` as it is, over a library that
has the signatures of CUDA's driver and keeps everything in host memory (`runtime/stand_in/driver.c`). `gpu` is a real
one.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from foreserve.runtime import device_driver

SOURCE = Path(__file__).parent / "runtime" / "stand_in" / "driver.c"


DEVICES = ["host-copy", "driver", pytest.param("gpu", marks=pytest.mark.gpu)]


def built(folder):
    """The library of the stand-in driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is needed to build the driver that stands in for CUDA's")
    library = folder / "libcuda-stand-in.so"
    if not library.exists():
        partial = folder / f"partial-{os.getpid()}.so"
        command = [compiler, "-O1", "-fPIC", "-shared", "-o", str(partial), str(SOURCE), "-lpthread"]
        subprocess.run(command, check=True, timeout=60)
        partial.replace(library)
    return library


def use(kind, folder, monkeypatch):
    """What weights have to be declared on to be on this device, in this process and in those it starts."""
    if kind == "gpu" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch sees no GPU here")
    if kind == "driver":
        monkeypatch.setenv(device_driver.LIBRARY, str(built(folder)))
        device_driver.driver.cache_clear()
    return "host-copy" if kind == "host-copy" else "cuda:0"
