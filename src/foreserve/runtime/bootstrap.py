"""Entry of every process of ours, run by path: `PYTHON bootstrap.py MODULE ARGUMENT...`.

`MODULE` is one of this folder, whose `main(arguments)` gives the exit code: `worker`, `zygote` (which forks workers),
`memory_process` or `memory_child`.

The interpreter may be one in which Foreserve is not installed. This file makes the package it lies in importable there
and nothing else: no folder of ours gets on the path, so that interpreter's own packages stay as they are. Kept to the
syntax of old Pythons, so that it can tell them in words what is wrong.
"""

import importlib
import importlib.util
import os
import sys

CANNOT_RUN = 78
"""Exit code (EX_CONFIG) when this interpreter cannot be a worker; why is on standard error."""

NEEDED = {"msgspec": "msgspec"}
"""What a worker imports beside its engine, and the package that brings it."""

OURS = ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
"""Variables that would lead another interpreter to the packages of ours."""

YIELDING = ("worker", "zygote")
NICENESS = 3
"""How much a worker, or what it is forked out of, yields the processor to others (half the weight of a process at 0).

On a machine with few cores an engine keeps all of them busy; the gateway, which works for microseconds at a time, must
not wait for it. A constant, since an engine that could set it would only gain by taking from the gateway.
"""


def provide_foreserve() -> None:
    """Make `foreserve` importable from the folder this file lies in, and leave the import path to the interpreter."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.getcwd()) != here]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # "module:attribute" may name a module beside the app; last, to shadow nothing
    root = os.path.dirname(here)
    spec = importlib.util.spec_from_file_location(
        "foreserve", os.path.join(root, "__init__.py"), submodule_search_locations=[root]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["foreserve"] = package
    spec.loader.exec_module(package)


def refusal() -> str:
    """Why this interpreter cannot be a worker; empty when it can."""
    if sys.version_info < (3, 11):  # noqa: UP036  # it is what this checks
        return "%s is Python %d.%d; a worker needs 3.11 or later" % (sys.executable, *sys.version_info[:2])  # noqa: UP031
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        return "%s lacks %s, which a worker needs; install with: %s -m pip install %s" % (  # noqa: UP031
            sys.executable,
            " and ".join(missing),
            sys.executable,
            " ".join(missing),
        )
    return ""


def main() -> int:
    """Returns the exit code."""
    reason = refusal()
    if reason:
        sys.stderr.write(reason + "\n")
        return CANNOT_RUN
    provide_foreserve()
    module = sys.argv.pop(1)
    if module in YIELDING:
        os.nice(NICENESS)
    return int(importlib.import_module("foreserve.runtime." + module).main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # a process that an engine has spawned
    provide_foreserve()  # it unpickles what is ours
    importlib.import_module("foreserve.runtime.ends").end_after_parent()
