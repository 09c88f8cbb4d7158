"""A process that wants weights as a worker does: `holder.py NAME=KIND:SOURCE[#SHA256]...`; ends with standard input.

Says one JSON line for each line it reads: `wait` for what it wants, `digest` it, tell its `memory`, `begin` anew.
"""

import hashlib
import json
import sys

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime import leases
from foreserve.runtime.footprint import footprint


def ref(text):
    name, _, rest = text.partition("=")
    kind, _, source = rest.partition(":")
    source, _, sha256 = source.partition("#")
    return WeightsRef(name=name, kind=kind, source=source, sha256=sha256 or None)


def main():
    refs = [ref(text) for text in sys.argv[1:]]
    leases.begin(refs)
    for line in sys.stdin:
        said = {}
        for each in refs:
            try:
                match line.strip():
                    case "wait":
                        said[each.name] = leases.get(each.name).wait(30.0).nbytes
                    case "digest":
                        said[each.name] = hashlib.sha256(leases.get(each.name).wait(30.0).image).hexdigest()
                    case "memory":
                        said["pss"] = footprint().pss
                    case "begin":
                        leases.begin([each])
            except EngineStartError as error:
                said[each.name] = str(error)
        print(json.dumps(said), flush=True)


main()
