"""Export trained networks and run them: `python -m deploy COMMAND` (--help names them)."""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

from deploy.images import read_images
from deploy.network import Network, check_threads, load
from lowbit_core.runtime.errors import InputError, run_cli

ROOT = Path(__file__).parents[1]
BEST = 5
FORMATS = ("lowbit", "onnx", "qonnx")
# torch says this once of the layout in which a network is computed fastest here.
LAYOUT_WARNING = r"torch\.searchsorted\(\): input value tensor is non-contiguous"


def _export(arguments: argparse.Namespace) -> None:
    if (arguments.out.suffix == ".onnx") != (arguments.format != "lowbit"):
        raise InputError(
            f"--out {arguments.out} with --format {arguments.format}: the name of an ONNX file "
            "must end with .onnx, and that of a .lowbit file must not"
        )
    from deploy.export.run import export_onnx, export_run

    if arguments.format != "lowbit":
        size, verified = export_onnx(
            arguments.run,
            arguments.out,
            arguments.data,
            as_qonnx=arguments.format == "qonnx",
            bits=arguments.bits,
        )
        print(f"{arguments.out}: {size:,} bytes")
        print(f"  {verified}")
        return
    size = export_run(arguments.run, arguments.out, arguments.data, arguments.bits)
    over = 100 * (size["file"] / size["information"] - 1)
    print(f"{arguments.out}: {size['file']:,} bytes, {over:.1f} % more than what it holds")
    print(
        f"  {size['entropy']:,} bytes if an ideal coder packed the codes, {size['compressed']:,} "
        f"after LZMA; {size['float32']:,} bytes in float32"
    )


def _predict(arguments: argparse.Namespace) -> None:
    network = load(arguments.model, threads=arguments.threads)
    unread = 0
    for path in arguments.images:
        try:
            image = read_images([path], network.about, network.graph.input_shape)
        except InputError as error:
            if len(arguments.images) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            unread += 1  # and go on with the others
            continue
        (scores,) = network.scores(image)
        shares = np.exp(scores.astype(np.float64) - scores.max())
        shares /= shares.sum()
        best = np.argsort(-scores, kind="stable")[:BEST]
        names = (f"{network.about.classes[i]} {100 * shares[i]:.1f} %" for i in best)
        print(f"{path}: {', '.join(names)}", flush=True)
    if unread:
        raise InputError(f"{unread} of {len(arguments.images)} images are not read")


def _show(arguments: argparse.Namespace) -> None:
    network: Network = load(arguments.model)
    for key, value in network.about.origin.items():
        print(f"{key}: {value}")
    for row in network.kernels():
        print(f"{row.layer}: {row.how}")


def _check(arguments: argparse.Namespace) -> None:
    from deploy.export.check import check_found, check_run

    found = check_run(
        arguments.model, arguments.run, arguments.data, arguments.threads, arguments.max_images
    )
    print(
        f"{found['images']} test images: top-1 {found['top1']:.2f} % by the file, "
        f"{found['top1_torch']:.2f} % by torch; the same class for {found['agreement']:.2f} % of "
        f"the images; after training {found['top1_training']:.2f} % of all test images"
    )
    check_found(arguments.model, found)


def _measure(arguments: argparse.Namespace) -> None:
    from deploy.measure import measure_runs, summary, write_measurements

    if arguments.out is not None:
        write_measurements(arguments.out, arguments.runs, arguments.data, arguments.max_images)
        return
    for row in measure_runs(arguments.runs, arguments.data, arguments.max_images):
        print(f"{row['run_id']}: {summary(row)}")


def _best(arguments: argparse.Namespace) -> None:
    from deploy.best import export_best

    for row in export_best(arguments.table, arguments.runs, arguments.out, arguments.data):
        print(f"{arguments.out / row['file']}: seed {row['seed']}, top-1 {row['top1']} %")


def _threads(text: str) -> int | None:
    if text != "fastest" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number or `fastest`")
    return None if text == "fastest" else int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m deploy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    data = {"type": Path, "default": ROOT / "data", "help": "the prepared data sets"}

    export = commands.add_parser("export", help="write the network of a finished run to one file")
    export.add_argument("run", type=Path, help="the run's folder, results/runs/<run>")
    export.add_argument("--out", type=Path, required=True, help="the file, such as model.lowbit")
    export.add_argument(
        "--format", choices=FORMATS, default="lowbit",
        help="lowbit, which the engine reads, by default; ONNX needs a name that ends with .onnx",
    )  # fmt: skip
    export.add_argument("--bits", help="W2A2, W1A2...: a lower bit-width of a run with `widths`")
    export.add_argument("--data", **data)
    export.set_defaults(call=_export)

    predict = commands.add_parser("predict", help="print the best classes of each image")
    predict.add_argument("model", type=Path, help="a .lowbit file")
    predict.add_argument("images", type=Path, nargs="+", help="image files of any size")
    predict.add_argument(
        "--threads", type=_threads, default=1, metavar="N|fastest",
        help="threads for one image, 1 by default; `fastest` measures how many",
    )  # fmt: skip
    predict.set_defaults(call=_predict)

    show = commands.add_parser("show", help="print where a file comes from and how it is computed")
    show.add_argument("model", type=Path, help="a .lowbit file")
    show.set_defaults(call=_show)

    check = commands.add_parser("check", help="compare a file with its run on the test images")
    check.add_argument("model", type=Path, help="a .lowbit file, or ONNX: its name ends with .onnx")
    check.add_argument("run", type=Path, help="the folder of its run, results/runs/<run>")
    check.add_argument("--data", **data)
    check.add_argument("--threads", type=int, default=1, help="threads for one image")
    check.add_argument("--max-images", type=int, help="test images to use; all by default")
    check.set_defaults(call=_check)

    measure = commands.add_parser("measure", help="accuracy, size and time of the files of runs")
    measure.add_argument("runs", type=Path, nargs="+", help="run folders, results/runs/<run>")
    measure.add_argument("--data", **data)
    measure.add_argument("--max-images", type=int, help="test images to use; all by default")
    measure.add_argument("--out", type=Path, help="write one JSON line for each run there")
    measure.set_defaults(call=_measure)

    best = commands.add_parser("best", help="export the best seed of each method of a suite")
    best.add_argument("table", type=Path, help="results.csv of the suite or of its record")
    best.add_argument("--runs", type=Path, default=ROOT / "results" / "runs", help="run folders")
    best.add_argument("--out", type=Path, required=True, help="folder of the files")
    best.add_argument("--data", **data)
    best.set_defaults(call=_best)
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    if getattr(arguments, "max_images", None) is not None and arguments.max_images < 1:
        raise InputError(f"--max-images {arguments.max_images}: must be at least 1")
    if getattr(arguments, "threads", None) is not None:
        check_threads(arguments.threads, "--threads")
    warnings.filterwarnings("ignore", LAYOUT_WARNING)
    try:
        arguments.call(arguments)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            f"`python -m deploy {arguments.command}` needs torch, which is not installed: "
            "`make setup` installs it (predict and show work without)"
        ) from None


if __name__ == "__main__":
    run_cli(main)
