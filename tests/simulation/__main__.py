"""`python -m tests.simulation SEED` replays a seed; `--seeds A:B --jobs N` runs many."""

import argparse
import sys
import time

from tests.simulation.planted import PLANTED, PROFILES
from tests.simulation.profiles import FAULTS, NAMED
from tests.simulation.run import KEPT, simulate
from tests.simulation.sweep import Sweep, summary, sweep, told


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="replay this seed, and show what happened")
    parser.add_argument("--seeds", metavar="A:B", help="run the seeds from A up to, but without, B")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--profile", default="swarm", choices=["swarm", *NAMED])
    parser.add_argument("--planted", default="", choices=["", *PLANTED, "all"], help="a bug that must be found")
    parser.add_argument("--lines", type=int, default=KEPT, help="lines of the trace to show; 0 for all")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many seeds have failed")
    args = parser.parse_args()
    if args.seeds is None:
        if args.seed is None:
            parser.error("name a seed, or --seeds A:B")
        return replay(args)
    first, _, end = args.seeds.partition(":")
    seeds = range(int(first), int(end))
    return table(args, seeds) if args.planted == "all" else many(args, seeds)


def replay(args: argparse.Namespace) -> int:
    report = simulate(args.seed, args.profile, args.planted, args.lines)
    print("\n".join(report.last))
    print(f"\nfaults: {report.faults}\ncounts: {report.counts}\ntrace {report.trace}")
    print(f"{report.virtual_s:.1f} virtual seconds in {report.cpu_s:.2f} s, {report.callbacks} callbacks")
    for violation in report.violations:
        print(f"BROKEN {violation}")
    print("all promises were kept" if report.ok else f"replay: {report.replay}")
    return 0 if report.ok else 1


def many(args: argparse.Namespace, seeds: range) -> int:
    shown_s, failures = time.monotonic(), 0

    def progress(so_far: Sweep) -> None:
        nonlocal shown_s, failures
        for report in so_far.failed[failures:]:
            print(f"failed: {report.replay}", file=sys.stderr)
        failures = len(so_far.failed)
        if time.monotonic() - shown_s > 2.0:
            shown_s = time.monotonic()
            rate = so_far.seeds / so_far.real_s
            print(f"{so_far.seeds}/{len(seeds)} seeds, {rate:.1f}/s, {len(so_far.failed)} failed", file=sys.stderr)

    found = sweep(seeds, args.jobs, args.profile, args.planted, progress, args.failures)
    for report in found.failed:
        print(told(report), end="\n\n")
    print(summary(found, FAULTS))
    return 1 if found.failed else 0


def table(args: argparse.Namespace, seeds: range) -> int:
    """Which seed finds which planted bug, and by which promise, as a table."""
    missed = 0
    print("| bug | what is wrong | seed | the promise that it breaks |\n|---|---|---|---|")
    for name, wiring in PLANTED.items():
        found = sweep(seeds, args.jobs, PROFILES.get(name, "swarm"), name, most_failed=1)
        missed += not found.failed
        seed, promise = (
            (str(found.failed[0].seed), found.failed[0].violations[0]) if found.failed else ("not found", "")
        )
        what = " ".join((wiring.__doc__ or "").split())
        print(f"| `{name}` | {what} | {seed} | {promise.partition(':')[0]} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
