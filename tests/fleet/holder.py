"""A process that wants weights as a worker does: `holder.py NAME=KIND:SOURCE[#SHA256][!DEVICE]...`.

Says one JSON line for each line it reads, until standard input ends: `wait` for what it wants, `digest` it, tell its
`memory`, `begin` anew; and of copies on a device: wait for them and tell their address (`placed`), digest what is there
(`look`), give them back (`rest`) and have them again (`wake`), or write where nobody may (`write`).
"""

import ctypes
import hashlib
import json
import os
import sys

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime import leases
from foreserve.runtime.device_driver import LIBRARY
from foreserve.runtime.footprint import footprint


def ref(text):
    name, _, rest = text.partition("=")
    kind, _, source = rest.partition(":")
    source, _, device = source.partition("!")
    source, _, sha256 = source.partition("#")
    return WeightsRef(name=name, kind=kind, source=source, sha256=sha256 or None, device=device or None)


def pending(each):
    return leases.get(each.name)


def window(each):
    found = pending(each).placed.wait(30.0)
    if found is None:
        raise EngineStartError(pending(each).placed.error)
    return found


def size(each):
    mapped = pending(each).wait(30.0)
    return mapped.nbytes - mapped.data_begin


def tensor(each):
    """Only a GPU is looked at by torch: what stands in for one is memory of this process."""
    from foreserve.engines.weights import Weights

    weights = Weights(pending(each), 30.0)
    return weights.torch(weights.names()[0])


def real(each):
    return each.device.startswith("cuda") and LIBRARY not in os.environ


def look(each):
    found = window(each)
    data = tensor(each).cpu().numpy().tobytes() if real(each) else ctypes.string_at(found.address, size(each))
    return hashlib.sha256(data).hexdigest()


def write(each):
    if real(each):
        tensor(each).fill_(7)
        import torch

        torch.cuda.synchronize()
    else:
        ctypes.memset(window(each).address, 7, 1)
    return "written"


def data(each):
    mapped = pending(each).wait(30.0)
    return hashlib.sha256(mapped.image[mapped.data_begin :]).hexdigest()


DO = {
    "wait": lambda each: pending(each).wait(30.0).nbytes,
    "digest": lambda each: hashlib.sha256(pending(each).wait(30.0).image).hexdigest(),
    "data": data,
    "begin": lambda each: leases.begin([each]),
    "placed": lambda each: window(each).address,
    "look": look,
    "rest": lambda each: pending(each).placed.rest(),
    "wake": lambda each: pending(each).placed.wake(),
    "write": write,
}


def main():
    refs = [ref(text) for text in sys.argv[1:]]
    leases.begin(refs)
    for line in sys.stdin:
        word = line.strip()
        if word == "memory":
            said = {"pss": footprint().pss}
        else:
            said = {}
            for each in refs:
                try:
                    said[each.name] = DO[word](each)
                except (EngineStartError, RuntimeError) as error:
                    said[each.name] = str(error)
            said = {name: told for name, told in said.items() if told is not None}
        print(json.dumps(said), flush=True)


main()
