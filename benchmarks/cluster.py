"""What a Ray cluster costs beside worker processes of this machine, and our plug-ins beside Ray Serve's own.

The same app and load run on both launchers in turn: SmolLM2 with one thread, a closed loop of streams. A hop is half of
what an engine that answers at once answers later as an actor than as a local process. For Ray Serve, a deployment of
modelled engines gets a real trace's requests: with our router and with Serve's own, with our scaling policy and with
Serve's own. What is lost are requests whose client was told no outcome, in all loads and while a worker, and then an
actor, is killed under load.

Needs `pip install 'foreserve[ray]'`. A part that fails is noted; the others' figures are still written.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cluster_hops import hops
from benchmarks.cluster_killed import killed
from benchmarks.cluster_serve import routed, scaled
from benchmarks.cluster_tokens import tokens
from benchmarks.common import Report, arguments, console, ratios

PARTS = ("streams", "hops", "deaths", "router", "scaling")
TOKEN = "0123456789abcdef" * 2


def main() -> None:
    """Run it."""
    args = arguments(
        __doc__, more=lambda parser: parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    )
    # Ray reads these when it is imported, here and in what is started.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", TOKEN)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    quick = args.quick
    report = Report("cluster", {"quick": quick, "model": "SmolLM2-135M-Instruct f16", "engine_threads": 1})
    lost: list[int] = []

    def streams(folder: Path) -> None:
        local, ray, missing = tokens(folder, report, repetitions=1 if quick else 3, requests=16 if quick else 64)
        lost.append(missing)
        report.add("tokens_vs_local", ratios(ray, local), "at least 0.9")
        report.add("tokens_per_s_local", local)
        report.add("tokens_per_s_ray", ray)

    def one_hop(folder: Path) -> None:
        local, ray = hops(requests=50 if quick else 500)
        later = [(b - a) / 2 * 1000 for a, b in zip(sorted(local), sorted(ray), strict=True)]
        report.add("hop_ms_p50", later[len(later) // 2])
        report.add("hop_ms_p99", later[int(len(later) * 0.99)])
        report.add("answer_ms_local", [seconds * 1000 for seconds in local])
        report.add("answer_ms_ray", [seconds * 1000 for seconds in ray])

    def deaths(folder: Path) -> None:
        lost.append(killed(folder, report, seconds=10 if quick else 30))

    def router(folder: Path) -> None:
        ours, default, missing = routed(report, repetitions=1 if quick else 2, seconds=8.0 if quick else 60.0)
        lost.append(missing)
        first, first_default = [run.first_s for run in ours], [run.first_s for run in default]
        whole, whole_default = [run.whole_s for run in ours], [run.whole_s for run in default]
        report.add("ray_serve_p99_vs_default_router", ratios(first, first_default), "below 1")
        report.add("ray_serve_p99_ttft_s", first)
        report.add("ray_serve_p99_ttft_s_default", first_default)
        report.add("ray_serve_p99_whole_vs_default_router", ratios(whole, whole_default))

    def scaling(folder: Path) -> None:
        ours, default, missing = scaled(report, seconds=15.0 if quick else 100.0)
        lost.append(missing)
        report.add("ray_serve_replica_seconds_vs_default_policy", ours.replica_s / default.replica_s, "at most 1")
        report.add("ray_serve_scaled_p99_s", ours.p99_s)
        report.add("ray_serve_scaled_p99_s_default", default.p99_s)

    parts: dict[str, Callable[[Path], None]] = {
        "streams": streams, "hops": one_hop, "deaths": deaths, "router": router, "scaling": scaling
    }  # fmt: skip
    for name, part in ((name, parts[name]) for name in PARTS if name in args.parts):
        console.print(f"{name} …")
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder))
        except Exception as error:
            report.note(f"{name} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            console.print_exception()
        console.print(f"{name}: {time.perf_counter() - start:.0f} s")
    if lost:
        report.add("lost_requests", sum(lost), "0")
    report.finish(args.json)


if __name__ == "__main__":
    main()
