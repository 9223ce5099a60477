"""`python -m tests.proof faults | twins | diagnoses | bugs | mutation | bench | speed | pages`: see the modules."""

from __future__ import annotations

import argparse
import os

CORES = os.cpu_count() or 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("-n", dest="workers", type=int, default=CORES, help="processes (default: one a core)")
    what = parser.add_subparsers(required=True)

    faults = what.add_parser("faults", help="the kill matrix and the power of each clause")
    faults.add_argument("names", nargs="*", metavar="FAULT")
    faults.add_argument("--seeds", type=int, default=20)
    faults.add_argument("--missing", action="store_true", help="only faults that have no row yet")
    faults.set_defaults(run=run_faults)

    twins = what.add_parser("twins", help="false alarms")
    twins.add_argument("names", nargs="*", metavar="TWIN")
    twins.add_argument("--missing", action="store_true", help="only twins that have no row yet")
    twins.add_argument("--profile", default="gate", choices=["gate", "smoke"])
    twins.add_argument("--examples", type=int, default=200_000, help="at least so many for each dtype")
    twins.add_argument("--dtype", nargs="*", default=["float32", "float64", "bfloat16"])
    twins.set_defaults(run=run_twins)

    diagnoses = what.add_parser("diagnoses", help="how often a failure is given its right name")
    diagnoses.add_argument("names", nargs="*", metavar="FAULT or TWIN")
    diagnoses.add_argument("--missing", action="store_true", help="only what has no row yet")
    diagnoses.set_defaults(run=run_diagnoses)

    bugs = what.add_parser("bugs", help="what is said of bugs that nobody planted with a diagnosis in mind")
    bugs.add_argument("names", nargs="*", metavar="BUG")
    bugs.add_argument("--missing", action="store_true", help="only what has no row yet")
    bugs.set_defaults(run=run_bugs)

    mutation = what.add_parser("mutation", help="slips in the reference and in the suite that no test sees")
    mutation.add_argument("targets", nargs="*", metavar="reference | suite")
    mutation.add_argument("--left", action="store_true", help="only what was left the last time, once more")
    mutation.set_defaults(run=run_mutation)

    bench = what.add_parser("bench", help="where the time of the gate goes")
    bench.add_argument("adapter", nargs="?", default="reference")
    bench.set_defaults(run=run_bench)

    speed = what.add_parser("speed", help="how fast the reference takes token log-probs")
    speed.set_defaults(run=run_speed)

    pages = what.add_parser("pages", help="the documents, from what was measured")
    pages.set_defaults(run=run_pages)

    arguments = parser.parse_args()
    return arguments.run(arguments)


def run_faults(arguments: argparse.Namespace) -> int:
    from . import faults

    return faults.run(arguments.names, seeds=arguments.seeds, workers=arguments.workers, missing=arguments.missing)


def run_twins(arguments: argparse.Namespace) -> int:
    from . import twins

    more = {"examples": arguments.examples, "workers": arguments.workers, "missing": arguments.missing}
    more["profile"] = arguments.profile
    return twins.run(arguments.names, arguments.dtype, **more)


def run_diagnoses(arguments: argparse.Namespace) -> int:
    from . import diagnoses

    return diagnoses.run(arguments.names, workers=arguments.workers, missing=arguments.missing)


def run_bugs(arguments: argparse.Namespace) -> int:
    from . import bugs

    return bugs.run(arguments.names, workers=arguments.workers, missing=arguments.missing)


def run_mutation(arguments: argparse.Namespace) -> int:
    from . import mutation

    return mutation.run(arguments.targets, workers=arguments.workers, left=arguments.left)


def run_bench(arguments: argparse.Namespace) -> int:
    from . import bench

    return bench.run(arguments.adapter)


def run_speed(arguments: argparse.Namespace) -> int:
    from . import speed

    return speed.run()


def run_pages(arguments: argparse.Namespace) -> int:
    from . import pages

    pages.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
