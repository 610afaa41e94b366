"""The command line: ``python -m papertrial <command>``. The first six are what the rules call."""

import argparse
import os
import sys

# One thread a job: many small jobs in parallel beat few threaded ones, and results don't depend on the machine.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_name] = "1"


def _planner(papers: list[str] | None = None):  # noqa: ANN202 (its import is what is put off)
    from papertrial.engine.config import load_config
    from papertrial.engine.plans import Planner
    from papertrial.engine.project import Project

    return Planner(Project(load_config(overrides={"papers": papers} if papers else None)))


def dataset(args: argparse.Namespace) -> None:
    from papertrial.engine.runner import make_dataset

    make_dataset(args.path)


def model(args: argparse.Namespace) -> None:
    from papertrial.engine.runner import make_model

    make_model(args.path, args.device)


def unit(args: argparse.Namespace) -> None:
    from papertrial.engine.runner import make_unit

    make_unit(args.path, args.device)


def page(args: argparse.Namespace) -> None:
    from papertrial.atlas.site import update

    update(_planner(), args.scale, args.paper)


def atlas(args: argparse.Namespace) -> None:
    from papertrial.atlas.site import build

    planner = _planner(args.papers)
    print(build(planner, args.scale, planner.project.selected, args.cores))


def record(args: argparse.Namespace) -> None:
    from papertrial.engine.recording import record_all

    record_all(_planner(args.papers))


def snapshot(_: argparse.Namespace) -> None:
    from papertrial.engine import versions
    from papertrial.engine.recording import record_all

    planner = _planner()
    versions.snapshot(planner)
    record_all(planner)


def prune(_: argparse.Namespace) -> None:
    from papertrial.engine import versions

    versions.prune(_planner())


def restore(args: argparse.Namespace) -> None:
    from papertrial.engine import versions

    versions.restore(_planner(args.papers))


def crate(args: argparse.Namespace) -> None:
    from pathlib import Path

    from papertrial.engine.export import crate as write

    print(write(_planner(args.papers), Path(args.target)))


def cite(args: argparse.Namespace) -> None:
    from papertrial.engine.export import bibliography

    planner = _planner(args.papers)
    print(bibliography(planner, planner.project.selected), end="")


def cost(args: argparse.Namespace) -> None:
    from papertrial.engine.bill import bill, check

    planner = _planner(args.papers)
    scale = args.scale or planner.project.config.scale
    if args.check:
        print(check(planner, "laptop", "smoke"))
    else:
        print(bill(planner, scale, args.device or planner.project.config.device, args.gpu_tflops))


def unlock(_: argparse.Namespace) -> None:
    from papertrial.engine.recovery import unlock as remove

    remove()


def new(args: argparse.Namespace) -> None:
    from papertrial.engine.skeleton import write_skeleton

    write_skeleton(args.paper)


def settings(_: argparse.Namespace) -> None:
    from papertrial.engine.docs import config_readme

    print(config_readme(), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="papertrial", description="Every paper gets a trial.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(function, text: str) -> argparse.ArgumentParser:  # noqa: ANN001
        sub = commands.add_parser(function.__name__, help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    scales = ("smoke", "laptop", "paper")
    for function, text in (
        (dataset, "prepare the data set at a planned path"),
        (model, "train the part of a base model at a planned path"),
        (unit, "run the unit of a paper at a planned path"),
    ):
        sub = command(function, text)
        sub.add_argument("path", help="data/.../<name>@<fingerprint>, as planned")
        sub.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda", "mps"))
    sub = command(page, "judge and draw one paper from what has run")
    sub.add_argument("scale", choices=scales)
    sub.add_argument("paper", help="<chapter>/<slug>")
    sub = command(atlas, "judge and draw every paper that moved, from what has run, and the index")
    sub.add_argument("scale", choices=scales)
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    sub.add_argument("--cores", type=int, default=0, help="how many cores the run had, for the engine's own account")
    sub = command(record, "write data/recorded/ from finished laptop-scale runs")
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    command(snapshot, "put finished artifacts under DVC, push them, and refresh data/recorded/")
    command(prune, "remove artifacts whose fingerprint no plan names")
    sub = command(restore, "pull artifacts and check them; what they don't cover is listed")
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    sub = command(crate, "export papers with code, artifacts and verdicts as an RO-Crate")
    sub.add_argument("target", help="the folder to write")
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    sub = command(cite, "print BibTeX of the papers")
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    sub = command(cost, "price what would run now: hours, memory, disk and energy of the jobs that are due")
    sub.add_argument("papers", nargs="*", help="slugs or patterns; those of the config by default")
    sub.add_argument("--scale", choices=scales, help="the config's by default")
    sub.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="the config's by default")
    sub.add_argument("--gpu-tflops", type=float, default=10.0, help="assumed of a GPU, 10^12 operations a second")
    sub.add_argument("--check", action="store_true", help="hold laptop scale, priced from smoke, against what it took")
    command(unlock, "remove the lock of a killed run, if nothing holds it")
    sub = command(new, "write the skeleton of a paper: yaml, method, evidence and test")
    sub.add_argument("paper", help="<chapter>/<slug>")
    command(settings, "print config/README.md, generated from the typed settings")
    return parser


def main(arguments: list[str] | None = None) -> int:
    from papertrial.engine.errors import PapertrialError

    args = _parser().parse_args(arguments)
    try:
        args.function(args)
    except PapertrialError as error:
        print(f"papertrial: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
