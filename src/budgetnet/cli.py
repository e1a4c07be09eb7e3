"""The command line: what a user types, mapped onto the library; nothing is computed here.

Results go to standard output, everything else to standard error. Exit codes: 0 success, 1 a mistake of the user's (one
line says which), 130 and 143 a run that was stopped and can go on.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import time
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from budgetnet.errors import BudgetnetError, CheckpointError, ConfigError, DataError
from budgetnet.masking import mask

if TYPE_CHECKING:
    import torch

    from budgetnet.checkpoint import Classifier
    from budgetnet.data import Dataset, Images
    from budgetnet.engine import Engine
    from budgetnet.evaluate import Scores
    from budgetnet.progress import Progress
    from budgetnet.robustness import Cell, ShiftScores

CALIBRATION_IMAGES, CALIBRATION_NUMBERS = 512, 2**26  # fewer where images are large: they are calibrated on as float32
COST_IMAGES = 5000  # by which the cost of int8 is told where there is no validation split
SHIFT_SEED = 0  # of generated corruptions: one benchmark for all

EXAMPLES = {
    "train": "budgetnet train recipes/quick.yaml --data ~/cifar --output runs/first --optimizer.lr 0.2",
    "evaluate": "budgetnet evaluate runs/first --shift all --split val --limit 1000",
    "predict": "budgetnet predict runs/first cifar_test_nolabel.pkl --output submission.csv",
    "models": "budgetnet models --budget 5000000",
    "inspect": "budgetnet inspect enhanced --picture enhanced.svg",
    "ablate": "budgetnet ablate recipes/quick.yaml --vary optimizer.lr=0.2,0.75 --epochs 4 --jobs 2",
    "fit": "budgetnet fit --budget 1e6 --latency 5 --epochs 4 --output runs/fit",
    "serve": "budgetnet serve runs/first --data ~/cifar",
    "report": "budgetnet report runs/first --data ~/cifar",
    "compare": "budgetnet compare runs/a-0 runs/a-1 runs/b-0 runs/b-1 --output compare.html",
    "track": "budgetnet track runs/first",
    "data verify": "budgetnet data verify ~/cifar",
    "data stats": "budgetnet data stats ~/cifar",
    "data download": "budgetnet data download cifar10 --data ~/cifar",
}


class _Parser(ArgumentParser):
    """A parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file and class names may be in no encoding at all
    try:
        if arguments[:1] == ["train"]:
            code: int = _train(arguments[1:])
            sys.stdout.flush()
            return code
        parser = _parser()
        parsed, further = parser.parse_known_args(arguments)
        if parsed.run is _ablate:
            parsed.options = further
        elif further:
            parser.error(f"unrecognized arguments: {' '.join(further)}")
        code = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BudgetnetError as error:
        return _failed(str(error), arguments)
    except KeyboardInterrupt:
        print("budgetnet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _leave_output()  # whoever read it has left
        return 1
    except OSError as error:
        if error.filename is not None:
            return _failed(f"{error.filename}: {error.strerror}", arguments)
        try:
            sys.stdout.flush()
        except OSError:  # so that was it
            _leave_output()
            what = f"cannot write the output: {error.strerror}; free some space where it goes"
            return _failed(what + (", then go on by --resume" if arguments[:1] == ["train"] else ""), arguments)
        raise


def _leave_output() -> None:
    """Write nothing more to standard output: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(message: str, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        print(mask(traceback.format_exc()), end="", file=sys.stderr)
    print(f"budgetnet: error: {mask(message)}", file=sys.stderr)
    return 1


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="budgetnet",
        description="Train the best image classifier that fits a parameter budget.",
        epilog="`budgetnet COMMAND --help` says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=f"budgetnet {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("train", help="train a network by a recipe", add_help=False)

    command = _command(commands, "evaluate", _evaluate, "score a model on labelled images")
    _add_model(command)
    _add_data(command)
    _add_engine(command)
    command.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="which images (default test)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="only N of its images, each class in its share")
    _add_remedies(command)
    command.add_argument(
        "--shift",
        metavar="NAME",
        help="corrupt the images: a corruption's name, or all 19; or test on cifar10.1, cifar10.2 or cifar10.2-train",
    )
    command.add_argument("--severity", type=int, metavar="N", help="of the corruptions, 1 to 5 (default: each)")
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="draw a heat map of the corruptions (.svg, .png), or write their record (.json)",
    )

    command = _command(commands, "predict", _predict, "classify images, and write a submission")
    _add_model(command)
    _add_data(command)
    _add_engine(command)
    command.add_argument("input", type=Path, help="contest pickle, folder of images, single image, or .npy")
    command.add_argument("--output", type=Path, metavar="FILE.csv", help="write a submission: ID,Labels")
    command.add_argument(
        "--probabilities", action="store_true", help="write FILE.probabilities.csv too, a column a class"
    )
    command.add_argument("--labels", type=Path, metavar="FILE", help="score the predictions against known ID,Labels")
    _add_remedies(command)

    command = _command(commands, "models", _models, "list the networks, their size and whether they fit a budget")
    command.add_argument("--budget", type=int, default=5_000_000, help="trainable parameters (default 5000000)")
    command.add_argument("--classes", type=int, default=10, help="number of classes (default 10)")

    command = _command(commands, "inspect", _inspect, "show a network's layers, or what a checkpoint holds")
    command.add_argument("what", metavar="MODEL_OR_CHECKPOINT", help="a listed name, a recipe, or a file of weights")
    command.add_argument("--model", metavar="NAME", help="network of a checkpoint of the reference project")
    command.add_argument("--width", type=int, help="width of a network given by name")
    command.add_argument("--classes", type=int, help="classes of a named network (default 10) or a recipe (its data's)")
    command.add_argument("--picture", type=Path, metavar="FILE.svg|png", help="draw the stages with their shapes")

    command = _command(commands, "ablate", _ablate, "tell what options of a recipe are worth, by several seeds")
    command.allow_abbrev = False  # what it does not know are options of the recipe
    command.usage = "budgetnet ablate RECIPE --vary KEY=VALUE,VALUE [options]"
    command.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe, or a file of named variants of one")
    command.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="values to try instead of the recipe's, repeatable",
    )
    command.add_argument("--grid", action="store_true", help="every value with every other, not one at a time")
    command.add_argument("--seeds", type=int, default=3, help="trainings of each variant (default 3)")
    command.add_argument("--shift", type=int, metavar="N", help="also judge by N held-out images under corruption")
    command.add_argument("--jobs", type=int, default=1, help="trainings at a time (default 1)")
    command.add_argument("--output", type=Path, metavar="DIR", help="keep the runs there (default runs/ablate-RECIPE)")
    command.add_argument("--record", type=Path, metavar="FILE", help="of all runs (default study.json beside them)")
    command.add_argument("--data", type=Path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")
    command.add_argument("--threads", type=int, default=0, help="of each training; 0 is one a core, shared by the jobs")

    command = _command(commands, "fit", _fit, "find the network that makes the most of a budget")
    command.add_argument("--budget", type=_count, required=True, metavar="N", help="trainable parameters, such as 5e6")
    command.add_argument("--flops", type=_count, metavar="N", help="most multiply-adds an image, such as 300e6")
    command.add_argument("--latency", type=float, metavar="MS", help="most milliseconds for one image on this CPU")
    command.add_argument("--families", nargs="+", default=(), metavar="NAME", help="such as preact shake (default all)")
    command.add_argument("--recipe", type=Path, metavar="FILE", help="how to train (default: one of its own)")
    command.add_argument(
        "--dataset", choices=("cifar10", "cifar100", "folder", "digits"), help="default: the recipe's, else cifar10"
    )
    command.add_argument("--data", type=Path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument(
        "--epochs",
        type=int,
        default=4,
        help="of each network at first; the better half goes on to twice as many, and so on; 0 trains none (default 4)",
    )
    command.add_argument("--minutes", type=float, metavar="M", help="at first, instead of as many epochs for each")
    command.add_argument("--seed", type=int, help="default: the recipe's, else 0")
    command.add_argument("--device", default="auto", help="where to train: auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is one a core")
    command.add_argument("--output", type=Path, metavar="DIR", help="keep runs, table, picture and the winner's recipe")

    command = _command(
        commands, "serve", _serve, "start a web page on which to try a model, by hand or by program", json=False
    )
    _add_model(command)
    _add_data(command)
    _add_engine(command, precision=False)
    command.set_defaults(json=False)
    command.add_argument(
        "--host", default="127.0.0.1", help="address or name to listen on (default 127.0.0.1: this machine alone)"
    )
    command.add_argument("--port", type=int, default=8000, help="to listen on; 0 is any that is free (default 8000)")

    command = _command(commands, "report", _report, "write the page that shows what a run learnt and where it is wrong")
    command.add_argument("folder", type=Path, metavar="RUN", help="the run's folder, which gets report.html")
    command.add_argument("--data", type=Path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument("--device", default="auto", help="where to compute: auto, cpu, cuda, cuda:N or mps")

    command = _command(
        commands, "compare", _compare, "compare runs: grouped by recipe, seed by seed, and by their cost"
    )
    command.add_argument("folders", type=Path, metavar="RUN", nargs="*", help="run folders; the first is compared with")
    command.add_argument("--experiment", metavar="NAME", help="the runs of an MLflow experiment instead")
    command.add_argument("--output", type=Path, metavar="FILE.html", help="write a page with curves and pictures too")

    command = _command(commands, "track", _track, "send a run's record to MLflow, completing what is there", json=False)
    command.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")

    group = commands.add_parser("data", help="verify, describe or download data").add_subparsers(
        metavar="COMMAND", required=True
    )
    command = _command(group, "verify", _verify, "check data files, and look for duplicates", parent="data ")
    command.add_argument("path", type=Path, nargs="?", help="a folder or file (default: where the data is looked for)")
    command = _command(group, "stats", _stats, "count classes, and measure pixel mean and deviation", parent="data ")
    command.add_argument("path", type=Path, nargs="?", help="a folder or file (default: where the data is looked for)")
    command = _command(group, "download", _download, "fetch and verify an official archive", json=False, parent="data ")
    command.add_argument("name", choices=("cifar10", "cifar100"), nargs="?", default="cifar10")
    command.add_argument("--data", type=Path, metavar="DIR", help="where to put it (default: $BUDGETNET_DATA, cache)")
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[Namespace], int],
    summary: str,
    *,
    json: bool = True,
    parent: str = "",
) -> ArgumentParser:
    """A subcommand with the options that all share."""
    command: ArgumentParser = commands.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=f"example: {EXAMPLES[parent + name]}"
    )
    command.set_defaults(run=run)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if json:
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return command


def _add_model(command: ArgumentParser) -> None:
    command.add_argument("checkpoint", type=Path, help="run folder, model file, or checkpoint of the reference project")
    command.add_argument("--model", metavar="NAME", help="network of a checkpoint of the reference project")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default auto)")


def _add_data(command: ArgumentParser) -> None:
    command.add_argument("--data", type=Path, metavar="DIR", help="where the data is (default: $BUDGETNET_DATA, cache)")
    command.add_argument(
        "--dataset", choices=("cifar10", "cifar100", "folder", "digits"), help="default: what the model was trained on"
    )


def _add_engine(command: ArgumentParser, *, precision: bool = True) -> None:
    command.add_argument(
        "--engine",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="what computes: ONNX Runtime (on the CPU) or PyTorch (default auto: the faster of those that are there)",
    )
    if not precision:
        command.set_defaults(precision="fp32")
        return
    command.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="int8 is faster; it is calibrated on training images (--data), and what it costs in accuracy is told",
    )


def _add_remedies(command: ArgumentParser) -> None:
    command.add_argument("--tta", choices=("none", "flip", "flip-shift"), default="none", help="views to average")
    command.add_argument(
        "--norm-statistics",
        choices=("source", "target"),
        default="source",
        help="of batch norms: those that training left, or those of the images at hand, without labels",
    )
    command.add_argument(
        "--norm-prior", type=int, metavar="N", help="with target: training's statistics count as N images (default 0)"
    )
    command.add_argument(
        "--temperature",
        type=_temperature,
        metavar="fit|T",
        help="divide logits by T, or by what fits the validation split best (--data)",
    )


def _temperature(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if text != "fit" and not 0 < value < float("inf"):
        raise ArgumentTypeError(f"found {text!r}, expected fit or a number above 0")
    return value or text


def _train(arguments: list[str]) -> int:
    import jsonargparse

    from budgetnet import config as configuration

    parser = jsonargparse.ArgumentParser(
        prog="budgetnet train",
        usage="budgetnet train RECIPE [options]",
        description="Train a network by a recipe; any key of the recipe is an option too.",
        epilog=f"example: {EXAMPLES['train']}",
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument("recipe_file", metavar="RECIPE", nargs="?", help="a YAML file (see recipes/)")
    parser.add_argument(
        "--data", metavar="DIR", help="where the data is; null is $BUDGETNET_DATA, else the cache folder"
    )
    parser.add_argument("--output", metavar="RUN", help="the run's folder; null is runs/RECIPE-TIME")
    parser.add_argument("--resume", action="store_true", help="continue RUN where it stopped, exactly")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is one a core")
    parser.add_argument("--no_track", action="store_true", help="leave MLflow out")
    parser.add_argument("--no_report", action="store_true", help="write no report.html at the end")
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--quiet", action="store_true", help="print nothing but warnings and errors")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    configuration.add_options(parser)
    if "--help" in arguments or "-h" in arguments:
        parser.print_help()
        return 0
    arguments, fit_memory = _without_auto_batch(arguments)
    config, options = configuration.parse(parser, arguments)
    run = Path(options.output) if options.output else None
    if options.resume and run is None:
        raise ConfigError("--resume needs --output RUN, the folder of the run to continue")
    if options.recipe_file is None:
        if not options.resume or run is None:
            raise ConfigError("which recipe? give a YAML file, such as recipes/quick.yaml")
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"{run} holds no config.yaml: there is nothing to resume")
        config, options = configuration.parse(parser, [str(run / "config.yaml"), *arguments])
    if options.threads < 0:
        raise ConfigError(f"threads is {options.threads}, expected 1 or more, or 0 for one a core")
    if options.print_config:
        print(configuration.to_yaml(config), end="")
        return 0
    run = run or Path("runs") / f"{Path(options.recipe_file).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _run_training(config, options, run, _progress(options.json or options.quiet, sys.stdout), fit_memory)


def _without_auto_batch(arguments: list[str]) -> tuple[list[str], bool]:
    """A command line without `--batch-size auto`, and whether that was there: then the recipe's is the most."""
    names = ("--batch-size", "--batch_size")
    for place, argument in enumerate(arguments):
        if argument in [f"{name}=auto" for name in names]:
            return [*arguments[:place], *arguments[place + 1 :]], True
        if argument in names and arguments[place + 1 : place + 2] == ["auto"]:
            return [*arguments[:place], *arguments[place + 2 :]], True
    return arguments, False


def _run_training(config: Any, options: Any, run: Path, progress: Progress, fit_memory: bool) -> int:
    import torch

    from budgetnet import devices, report
    from budgetnet.progress import summary_lines
    from budgetnet.train import Interrupted, train

    if options.threads:
        torch.set_num_threads(options.threads)
    device = devices.find(options.device)
    caught: list[int] = []

    def write_report(dataset: Dataset) -> None:
        if not options.no_report:
            report.after_training(run, dataset, device, progress.warn)

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])  # a second one ends the program at once
        if not progress.begun:
            signal.raise_signal(number)
        caught.append(number)
        progress.say("stopping after this step")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        summary = train(
            config,
            run,
            folder=Path(options.data) if options.data else None,
            device=device,
            progress=progress,
            track=not options.no_track,
            resume=options.resume,
            fit_memory=fit_memory,
            stop=lambda: bool(caught),
            report=write_report,
        )
    except Interrupted:
        print(f"saved; to go on: {_resume_command(run, options)}", file=sys.stderr)
        return 128 + caught[0]
    except KeyboardInterrupt:
        if (run / "last.ckpt").is_file():
            print(f"to go on from {run / 'last.ckpt'}: {_resume_command(run, options)}", file=sys.stderr)
        raise
    finally:
        progress.end()
        for number, handler in before.items():
            signal.signal(number, handler)
    if options.json:
        print(json.dumps(summary))
    for line in summary_lines(summary, run):
        progress.say(line)
    return 0


def _resume_command(run: Path, options: Any) -> str:
    again = ["budgetnet", "train", "--resume", "--output", str(run)]
    again += ["--data", options.data] if options.data else []
    again += ["--device", options.device] if options.device != "auto" else []
    again += ["--threads", str(options.threads)] if options.threads else []
    again += ["--no-track"] if options.no_track else []
    again += ["--no-report"] if options.no_report else []
    return shlex.join(again)


def _progress(silent: bool, out: TextIO) -> Progress:
    from budgetnet import progress

    if silent:
        return progress.Progress()
    return progress.LiveProgress(out) if out.isatty() else progress.PlainProgress(out)


def _evaluate(options: Namespace) -> int:
    from budgetnet import checkpoint, cifar, evaluate
    from budgetnet.files import atomic_write
    from budgetnet.remedies import render_scored

    corruptions, severities = _corruptions(options)
    _check_remedies(options)
    classifier = _classifier(options)
    trained = _trained_on(options.checkpoint, classifier)
    outside = options.shift in cifar.TEST_SETS
    dataset = None
    if not outside or options.precision == "int8" or options.temperature == "fit":
        dataset = _dataset(options, classifier, trained)
    if outside:
        images = _test_set(options, classifier)
    else:
        assert dataset is not None
        images = _split_images(options, dataset, trained)
    images = _limited(images, options)
    network = exact = _network(options, classifier)
    if options.precision == "int8":
        assert dataset is not None
        network = _quantized(classifier, dataset, trained)
    remedies, classify = _remedied(options, classifier, network, dataset, trained)
    result = {
        "checkpoint": str(options.checkpoint),
        "dataset": options.shift if dataset is None or outside else dataset.name,
        "split": options.split,
        "limit": options.limit,
        **_computed_by(network),
        "tta": options.tta,
    }
    labels = images.labels
    assert labels is not None
    if corruptions:
        assert dataset is not None
        result["weights"] = checkpoint.digest({}, classifier.network.state_dict())
        lines = _evaluate_shift(options, dataset, images, corruptions, severities, classify, remedies, result)
    else:
        found = [evaluate.score(logits, labels) for logits in classify(images.images)]
        for remedy, before, after in zip(remedies, found, found[1:], strict=False):
            remedy |= {"before": _brief(before), "after": _brief(after)}
        result |= found[-1].to_dict()
        lines = [evaluate.render(found[-1], classifier.classes)]
    if remedies:
        result["remedies"] = remedies
        lines += ["", *(render_scored(remedy, options.split) for remedy in remedies)]
    if options.precision == "int8":
        exactly, quantized = (_logits(either, classifier, images.images, options) for either in (exact, network))
        result["int8"] = _int8_cost(exactly, quantized, labels, options.split)
        lines += ["", _int8_line(result["int8"])]
    if corruptions and options.output and options.output.suffix.lower() == ".json":
        atomic_write(options.output, (json.dumps(result) + "\n").encode())
    print(json.dumps(result) if options.json else "\n".join(lines))
    return 0


def _corruptions(options: Namespace) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The corruptions and severities that are asked for, none without; what makes no sense is refused."""
    from budgetnet import cifar, pictures, shift

    if options.shift is None or options.shift in cifar.TEST_SETS:
        for name in ("severity", "output"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name} is for corruptions: give --shift all, or leave it out")
        if options.shift and options.split != "test":
            raise ConfigError(f"{options.shift} is a test set, never to choose by: leave out --split {options.split}")
        return (), ()
    if options.shift not in ("all", *shift.NAMES, *cifar.TEST_SETS) and options.shift.startswith("cifar"):
        raise ConfigError(f"{options.shift!r} is no test set, expected {', '.join(cifar.TEST_SETS)}")
    names = shift.NAMES if options.shift == "all" else (options.shift,)
    severities = shift.SEVERITIES if options.severity is None else (options.severity,)
    shift.check(names[0], severities[0])
    if options.output and options.output.suffix.lower() == ".json":
        if not options.output.parent.is_dir():
            raise ConfigError(f"cannot write {options.output}: there is no folder {options.output.parent}; create it")
    elif options.output:
        pictures.require_picture(options.output)
    return names, severities


def _check_remedies(options: Namespace) -> None:
    target = options.norm_statistics == "target"
    if options.norm_prior is not None and not target:
        raise ConfigError("--norm-prior is for --norm-statistics target: give both, or leave it out")
    if (options.norm_prior or 0) < 0:
        raise ConfigError(f"--norm-prior is {options.norm_prior}, expected 0 or more images")
    if target and options.precision == "int8":
        raise ConfigError(
            "int8 is calibrated for the norm statistics that training left: leave out --precision int8 or "
            "--norm-statistics target"
        )


def _test_set(options: Namespace, classifier: Classifier) -> Images:
    from budgetnet import cifar, data
    from budgetnet.images import SIDE

    if classifier.classes != cifar.CIFAR10_CLASSES or classifier.image_size != SIDE:
        raise DataError(
            f"{options.checkpoint} knows {len(classifier.classes)} classes ({', '.join(classifier.classes[:3])}, ...) "
            f"in images of {classifier.image_size} pixels, but {options.shift} has those of CIFAR-10 in {SIDE}"
        )
    return cifar.read_test_set(options.shift, options.data or data.default_folder())


def _split_images(options: Namespace, dataset: Dataset, trained: dict[str, Any]) -> Images:
    """The images of a split, whose ids are their places in the training set or the test set."""
    import torch

    from budgetnet import data

    images = dataset.test if options.split == "test" else dataset.train
    if options.split == "test":
        if trained.get("train_on_test") and trained["data_checksum"] == dataset.checksum:
            raise ConfigError(
                f"{options.checkpoint} was trained on these test images too (train_on_test): it has no test score; use "
                "--split val"
            )
        return data.Images(images.images, images.labels, torch.arange(len(images)))
    assert images.labels is not None
    if "val_size" not in trained:
        raise ConfigError(
            f"{options.checkpoint} does not say which images it was chosen by: only --split test is known"
        )
    if dataset.checksum != trained["data_checksum"]:
        raise DataError(
            f"{options.checkpoint} was trained on other data (checksum {trained['data_checksum'][:12]}, found "
            f"{dataset.checksum[:12]}): of these images none are known as its {options.split} split"
        )
    chosen = _known_split(dataset, trained)[options.split == "val"]
    if not len(chosen):
        raise ConfigError(f"{options.checkpoint} was trained with val_size 0: there is no validation split")
    return data.Images(images.images[chosen], images.labels[chosen], chosen)


def _limited(images: Images, options: Namespace) -> Images:
    """Some of the images, the same each time, each class in its share."""
    from budgetnet import data

    if options.limit is None or options.limit == len(images):
        return images
    if not 1 <= options.limit <= len(images):
        raise ConfigError(f"--limit is {options.limit:,}, expected 1 to {len(images):,}, the images that there are")
    assert images.labels is not None
    _, chosen = data.split(images.labels, options.limit, 0)
    ids = None if images.ids is None else images.ids[chosen]
    return data.Images(images.images[chosen], images.labels[chosen], ids)


def _evaluate_shift(
    options: Namespace,
    dataset: Dataset,
    images: Images,
    names: tuple[str, ...],
    severities: tuple[int, ...],
    classify: Callable[[torch.Tensor], list[torch.Tensor]],
    remedies: list[dict[str, Any]],
    result: dict[str, Any],
) -> list[str]:
    """Score corrupted images; `result` and `remedies` are completed, and what a person reads is returned."""
    from budgetnet import cifar, data, pictures, robustness, shift

    labels, ids = images.labels, images.ids
    assert labels is not None
    assert ids is not None
    shift.require_size(*images.images.shape[2:])
    official = None
    if options.split == "test" and dataset.test.labels is not None:
        official = cifar.locate_corrupted(dataset.name, options.data or data.default_folder(), dataset.test.labels)

    def corrupted(name: str, severity: int) -> torch.Tensor:
        if official is not None:
            return official.images(name, severity, ids)
        return shift.corrupt(images.images, name, severity, indices=ids, seed=SHIFT_SEED)

    progress = _progress(options.json, sys.stderr)
    try:
        tables = robustness.measure(classify, images.images, labels, corrupted, names, severities, progress.score)
    finally:
        progress.end()
    final = tables[-1]
    if official is not None:
        source = str(official.folder)
        line = f"corrupted as in {source}"
    else:
        source = "generated"
        line = f"corruptions generated with seed {SHIFT_SEED}"
        line += "\n(frost is a stand-in for the photographs that CIFAR-10-C shows)" if "frost" in names else ""
    result |= {"images": len(labels), "source": source, "seed": None if official else SHIFT_SEED, **final.to_dict()}
    for remedy, before, after in zip(remedies, tables, tables[1:], strict=False):
        remedy |= {"before": _shift_brief(before), "after": _shift_brief(after)}
    lines = [robustness.render(final), "", f"{len(labels):,} images of the {options.split} split; {line}"]
    if options.output:
        result["output"] = str(options.output)
        lines.append(f"written to {options.output}")
        if options.output.suffix.lower() != ".json":
            pictures.draw_shift(final, options.output, f"{options.checkpoint}: {options.split} images under corruption")
            lines[-1] = f"drawn to {options.output}"
    return lines


def _brief(scores: Scores | Cell) -> dict[str, float]:
    return {"accuracy": scores.accuracy, "loss": scores.loss, "ece": scores.ece}


def _shift_brief(scores: ShiftScores) -> dict[str, Any]:
    """The mean over the 15 corruptions where all were measured, else over those that were; and clean."""
    from budgetnet.shift import COMMON

    mean = scores.mean(COMMON) or scores.mean(list(scores.cells))
    assert mean is not None
    return {**_brief(mean), "clean": _brief(scores.clean)}


def _remedied(
    options: Namespace,
    classifier: Classifier,
    network: torch.nn.Module | Engine,
    dataset: Dataset | None,
    trained: dict[str, Any],
) -> tuple[list[dict[str, Any]], Callable[[torch.Tensor], list[torch.Tensor]]]:
    """What is to be done at test time, and what gives the logits of images without it and after each remedy."""
    from dataclasses import replace

    from budgetnet import evaluate
    from budgetnet.remedies import adapted, fit_temperature

    remedies: list[dict[str, Any]] = []
    temperatures: list[float] = []

    def classify(pixels: torch.Tensor) -> list[torch.Tensor]:
        found = [_logits(network, classifier, pixels, options)]
        if options.norm_statistics == "target":
            own = adapted(classifier.network, pixels, classifier.mean, classifier.std, options.norm_prior or 0)
            compiled = _network(options, replace(classifier, network=own), warn=False)
            found.append(_logits(compiled, classifier, pixels, options))
        return found + [found[-1] / temperature for temperature in temperatures]

    if options.norm_statistics == "target":
        remedies.append({"remedy": "norm statistics", "prior": options.norm_prior or 0})
    if options.temperature == "fit":
        assert dataset is not None
        labels = dataset.train.labels
        assert labels is not None
        _, validation = _known_split(dataset, trained)
        if not len(validation):
            raise ConfigError(
                f"--temperature fit needs a validation split, and none of {options.checkpoint} is known in these data: "
                "give a number"
            )
        logits, labels = classify(dataset.train.images[validation])[-1], labels[validation]
        temperature = fit_temperature(logits, labels)
        before, after = (_brief(evaluate.score(either, labels)) for either in (logits, logits / temperature))
        fitted = {"split": "val", "images": len(labels), "before": before, "after": after}
        remedies.append({"remedy": "temperature", "temperature": temperature, "fitted": fitted})
        temperatures.append(temperature)
    elif options.temperature is not None:
        remedies.append({"remedy": "temperature", "temperature": options.temperature})
        temperatures.append(options.temperature)
    return remedies, classify


def _dataset(options: Namespace, classifier: Classifier, trained: dict[str, Any]) -> Dataset:
    """The data that the options name, else what the model was trained on, with the classes that it knows."""
    from budgetnet import data

    progress = _progress(options.json, sys.stderr)
    try:
        name = options.dataset or trained.get("dataset", "cifar10")
        dataset = data.load(name, options.data, classifier.image_size, progress=progress.download)
    finally:
        progress.end()
    if dataset.classes != classifier.classes:
        raise DataError(
            f"{options.checkpoint} knows {len(classifier.classes)} classes ({', '.join(classifier.classes[:3])}, ...), "
            f"but {dataset.name} has {len(dataset.classes)} ({', '.join(dataset.classes[:3])}, ...)"
        )
    return dataset


def _trained_on(checkpoint: Path, classifier: Classifier) -> dict[str, Any]:
    """What the file says of its training data, or nothing where it does not say."""
    from typing import get_args

    from budgetnet.config import DatasetName

    found = classifier.provenance.get("config")
    if found is None:
        return {}
    trained = {"data_checksum": classifier.provenance.get("data_checksum")}
    if isinstance(found, dict):
        trained |= {key: found.get(key) for key in ("dataset", "val_size", "split_seed")}
        # which older files do not know
        trained |= {"train_on_test": found.get("train_on_test", False), "train_size": found.get("train_size")}
    kinds: dict[str, Any] = {"data_checksum": str, "dataset": str, "val_size": int, "split_seed": int}
    kinds |= {"train_on_test": bool, "train_size": int | None}
    wrong = [key for key, kind in kinds.items() if not isinstance(trained.get(key), kind)]
    if wrong or trained["dataset"] not in get_args(DatasetName):
        raise CheckpointError(f"{checkpoint} does not say as it should what it was trained on: {wrong or 'dataset'}")
    return trained


def _predict(options: Namespace) -> int:
    import torch

    from budgetnet import data, evaluate, predict
    from budgetnet.remedies import render_predicted

    if options.output is None and (options.probabilities or options.labels):
        raise ConfigError("--probabilities and --labels need a submission: give --output FILE.csv too")
    if options.precision != "int8" and options.temperature != "fit" and (options.data or options.dataset):
        raise ConfigError(
            "--data and --dataset name what --precision int8 is calibrated on and --temperature fit fitted on: leave "
            "them out"
        )
    _check_remedies(options)
    classifier = _classifier(options)
    images = data.read_images(options.input, classifier.image_size)
    network = _network(options, classifier)
    trained = _trained_on(options.checkpoint, classifier)
    dataset = _data_to_fit(options, classifier, trained)
    if options.precision == "int8":
        assert dataset is not None
        network, cost = _quantized_for_prediction(options, classifier, network, dataset, trained)
    remedies, classify = _remedied(options, classifier, network, dataset, trained)
    stages = classify(images.images)
    logits = stages[-1]
    for remedy, before, after in zip(remedies, stages, stages[1:], strict=False):
        remedy["predictions_changed"] = (before.argmax(1) != after.argmax(1)).double().mean().item()
    probabilities = torch.softmax(logits, 1)
    labels = logits.argmax(1).tolist()
    ids = list(range(len(labels))) if images.ids is None else images.ids.tolist()
    result: dict[str, Any] = {
        "checkpoint": str(options.checkpoint),
        "input": str(options.input),
        "images": len(ids),
        **_computed_by(network),
        "tta": options.tta,
    }
    if options.precision == "int8":
        result["int8"] = cost
    if remedies:
        result["remedies"] = remedies
    if options.output:
        # What can be refused comes first, so that a mistake leaves nothing behind.
        if options.labels:
            every = [
                predict.score_predictions(ids, stage.argmax(1).tolist(), options.labels, len(classifier.classes))
                for stage in stages
            ]
            scores = every[-1]
            result["scores"] = scores.to_dict()
            for remedy, one, other in zip(remedies, every, every[1:], strict=False):
                remedy |= {"accuracy_before": one.accuracy, "accuracy_after": other.accuracy}
        if options.probabilities:
            beside = options.output.with_suffix(".probabilities.csv")
            predict.write_probabilities(beside, ids, probabilities, classifier.classes, files=images.names)
            result["probabilities"] = str(beside)
        predict.write_submission(options.output, ids, labels, len(classifier.classes))
        result["output"] = str(options.output)
    else:
        result["predictions"] = [
            {"ID": i, "label": label, "class": classifier.classes[label], "probability": p[label].item()}
            for i, label, p in zip(ids, labels, probabilities, strict=True)
        ]
        for entry, file in zip(result["predictions"], images.names or (), strict=False):
            entry["file"] = file
    if options.json:
        print(json.dumps(result))
        return 0
    names = images.names or tuple(map(str, ids))
    for name, row in zip(names, result.get("predictions", []), strict=False):
        print(f"{name}  {row['class']}  {row['probability']:.1%}")
    for key in ("output", "probabilities"):
        if key in result:
            print(f"{result[key]}: {len(ids):,} rows")
    if options.labels:
        print(f"against {options.labels}:")
        print(evaluate.render(scores, classifier.classes))
    for remedy in remedies:
        print(render_predicted(remedy))
    if options.precision == "int8":
        print(_int8_line(cost))
    return 0


def _data_to_fit(options: Namespace, classifier: Classifier, trained: dict[str, Any]) -> Dataset | None:
    """The data that a prediction is prepared by, where it is."""
    if options.precision == "int8":
        what = "--precision int8 is calibrated on training images"
    elif options.temperature == "fit":
        what = "--temperature fit is fitted on validation images"
    else:
        return None
    try:
        return _dataset(options, classifier, trained)
    except DataError as error:
        raise DataError(f"{what}, named by --data: {error}") from error


def _network(options: Namespace, classifier: Classifier, *, warn: bool = True) -> torch.nn.Module | Engine:
    """What computes in fp32: an engine, or the network itself."""
    from budgetnet import engine

    onnx = options.engine == "onnx" or options.precision == "int8"
    if options.engine == "auto" and next(classifier.network.parameters()).device.type == "cpu":
        onnx = onnx or engine.available()
        if not onnx and warn:
            _warn("onnx and onnxruntime are not installed, so PyTorch computes, which takes several times as long")
    return engine.compile_network(classifier.network, _image_shape(classifier)) if onnx else classifier.network


def _quantized(classifier: Classifier, dataset: Dataset, trained: dict[str, Any]) -> Engine:
    """The network in int8, calibrated on some of the images that it was trained on."""
    from budgetnet import engine
    from budgetnet.augment import normalize

    training, _ = _known_split(dataset, trained)
    count = min(CALIBRATION_IMAGES, max(1, CALIBRATION_NUMBERS // dataset.train.images[0].numel()))
    pixels = dataset.train.images[_some(training, count)]
    calibration = normalize(pixels, classifier.mean, classifier.std)
    return engine.compile_network(
        classifier.network, _image_shape(classifier), precision="int8", calibration=calibration
    )


def _quantized_for_prediction(
    options: Namespace,
    classifier: Classifier,
    exact: torch.nn.Module | Engine,
    dataset: Dataset,
    trained: dict[str, Any],
) -> tuple[Engine, dict[str, Any]]:
    """The network in int8, and what that costs on the images that the model was chosen by, else was trained on."""
    labels = dataset.train.labels
    assert labels is not None
    training, validation = _known_split(dataset, trained)
    split, chosen = ("val", validation) if len(validation) else ("train", _some(training, COST_IMAGES))
    quantized = _quantized(classifier, dataset, trained)
    pixels = dataset.train.images[chosen]
    before, after = (_logits(network, classifier, pixels, options) for network in (exact, quantized))
    return quantized, _int8_cost(before, after, labels[chosen], split)


def _known_split(dataset: Dataset, trained: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the images that the model was trained on and chosen by; where nobody knows, of all and none."""
    import torch

    from budgetnet import data

    labels = dataset.train.labels
    assert labels is not None
    if trained.get("data_checksum") != dataset.checksum:
        return torch.arange(len(labels)), torch.arange(0)
    return data.split(labels, trained["val_size"], trained["split_seed"], trained["train_size"])


def _some(indices: torch.Tensor, n: int) -> torch.Tensor:
    """The same `n` each time (all where there are fewer), from all over: data may be in the order of its classes."""
    import torch

    return indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:n]]


def _logits(
    network: torch.nn.Module | Engine, classifier: Classifier, pixels: torch.Tensor, options: Namespace
) -> torch.Tensor:
    from budgetnet import evaluate

    return evaluate.predict_logits(network, pixels, classifier.mean, classifier.std, tta=options.tta)


def _image_shape(classifier: Classifier) -> tuple[int, int, int]:
    return len(classifier.mean), classifier.image_size, classifier.image_size


def _computed_by(network: torch.nn.Module | Engine) -> dict[str, str]:
    from budgetnet.engine import Engine

    if isinstance(network, Engine):
        return {"engine": "onnx", "arithmetic": network.precision}
    return {"engine": "torch", "arithmetic": "fp32"}


def _int8_cost(exact: torch.Tensor, quantized: torch.Tensor, labels: torch.Tensor, split: str) -> dict[str, Any]:
    """What quantisation costs on these images."""
    from budgetnet import evaluate

    before, after = (evaluate.score(logits, labels).accuracy for logits in (exact, quantized))
    return {
        "split": split,
        "images": len(labels),
        "fp32_accuracy": before,
        "int8_accuracy": after,
        "points_lost": round(100 * (before - after), 9),  # the difference has digits that the two have not
        "predictions_changed": (exact.argmax(1) != quantized.argmax(1)).double().mean().item(),
    }


def _int8_line(cost: dict[str, Any]) -> str:
    before, after = cost["fp32_accuracy"], cost["int8_accuracy"]
    return (
        f"int8 instead of fp32 on {cost['images']:,} images of the {cost['split']} split: accuracy {before:.2%} -> "
        f"{after:.2%} ({100 * (after - before):+.2f} points), {cost['predictions_changed']:.2%} of predictions changed"
    )


def _models(options: Namespace) -> int:
    import torch

    from budgetnet import models
    from budgetnet.config import ModelConfig

    rows = []
    for name in models.names():
        with torch.device("meta"):
            network = models.build(ModelConfig(name=name), options.classes)
        parameters, macs = models.count_parameters(network), models.multiply_adds(network, 32)
        rows.append(
            {"name": name, "parameters": parameters, "multiply_adds": macs, "fits": parameters <= options.budget}
        )
    if options.json:
        print(json.dumps({"budget": options.budget, "models": rows}))
        return 0
    print(f"{'network':<20} {'parameters':>12} {'multiply-adds':>15}  fits {options.budget:,}")
    for row in rows:
        print(
            f"{row['name']:<20} {row['parameters']:>12,} {row['multiply_adds']:>15,}  {'yes' if row['fits'] else 'no'}"
        )
    return 0


def _inspect(options: Namespace) -> int:
    from budgetnet import checkpoint, data, models, pictures
    from budgetnet import config as configuration
    from budgetnet.config import ModelConfig

    provenance: dict[str, Any] = {}
    named = options.what in models.names() or not Path(options.what).exists()
    if options.width is not None and not named:
        raise ConfigError(f"--width is for a network given by name, and {options.what} has its own: leave it out")
    if options.model is not None and named:
        raise ConfigError(f"--model is for a checkpoint of the reference project, not for {options.what}: leave it out")
    if Path(options.what).suffix in (".yaml", ".yml"):
        recipe = configuration.load(Path(options.what))
        size, title = recipe.image_size, recipe.model.name
        classes = options.classes or data.num_classes(recipe.dataset, None)
        network = models.build(recipe.model, classes, size, recipe.budget)
    elif named:
        if "/" in options.what or Path(options.what).suffix:
            raise CheckpointError(f"{options.what} is not there: give a name that `budgetnet models` lists, or a file")
        config, size = ModelConfig(name=options.what, width=options.width), 32
        network = models.build(config, options.classes or 10)
        title = options.what
    else:
        classifier = checkpoint.load_classifier(Path(options.what), options.model)
        network, size, title = classifier.network, classifier.image_size, classifier.model.name
        provenance = {"classes": classifier.classes, "mean": classifier.mean, "std": classifier.std}
        provenance |= classifier.provenance
    rows = models.summarize(network, size)
    if options.picture:
        pictures.draw_network(network, options.picture, title, size)
    if options.json:
        layers = [vars(row) for row in rows]
        print(json.dumps({"model": title, "layers": layers, "provenance": provenance}))
        return 0
    print(f"{title}, {size}x{size} images")
    widest = max(len(row.name) for row in rows)
    print(f"{'layer':<{widest}}  {'output':>14}  {'parameters':>11}  {'multiply-adds':>13}  kind")
    for row in rows:
        shape = "x".join(map(str, row.output_shape))
        print(f"{row.name:<{widest}}  {shape:>14}  {row.parameters:>11,}  {row.multiply_adds:>13,}  {row.kind}")
    parameters, macs = sum(r.parameters for r in rows), sum(r.multiply_adds for r in rows)
    print(f"{'total':<{widest}}  {'':>14}  {parameters:>11,}  {macs:>13,}")
    for key, value in provenance.items():
        if key != "config":
            print(f"{key}: {value}")
    if options.picture:
        print(f"drawn to {options.picture}")
    return 0


def _ablate(options: Namespace) -> int:
    from dataclasses import replace

    from budgetnet import ablate

    study = ablate.read_study(options.recipe)
    vary = ablate.parse_vary(options.vary)
    if study and (vary or options.grid):
        raise ConfigError(f"{options.recipe} names its variants: leave --vary and --grid out, or give a recipe")
    if study is None:
        variants = (ablate.grid if options.grid else ablate.one_at_a_time)(vary)
        study = ablate.Study(recipe=options.recipe, variants=variants)
    study = replace(study, always=[*study.always, *options.options], seeds=options.seeds)
    if options.shift is not None:
        study = replace(study, shift=options.shift)
    runs = options.output or Path("runs") / f"ablate-{options.recipe.stem}"
    try:
        record = ablate.carry_out(
            study,
            runs,
            folder=options.data,
            device=options.device,
            threads=options.threads,
            jobs=options.jobs,
            say=lambda text: print(text, file=sys.stderr, flush=True),
            record=options.record or runs / "study.json",
        )
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        raise
    if options.json:
        compared = {"comparison": ablate.compare(record)}
        if study.shift:
            compared["corruption_comparison"] = ablate.compare(record, "corruption_accuracy")
        print(json.dumps(record | compared))
    else:
        print(ablate.render(record))
    return 0


def _fit(options: Namespace) -> int:
    from dataclasses import replace

    import torch

    from budgetnet import config as configuration
    from budgetnet import devices, fit

    if options.threads < 0:
        raise ConfigError(f"threads is {options.threads}, expected 1 or more, or 0 for one a core")
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = configuration.load(options.recipe) if options.recipe else fit.default_recipe(options.dataset or "cifar10")
    dataset = options.dataset or recipe.dataset
    seed = recipe.seed if options.seed is None else options.seed
    request = fit.Request(
        budget=options.budget,
        recipe=replace(recipe, dataset=dataset, seed=seed),
        families=tuple(options.families),
        multiply_adds=options.flops,
        latency_ms=options.latency,
        epochs=options.epochs,
        minutes=options.minutes,
    )
    progress = _progress(False, sys.stderr if options.json else sys.stdout)
    device = devices.find(options.device)
    try:
        result = fit.fit(request, folder=options.data, output=options.output, device=device, progress=progress)
    except KeyboardInterrupt:
        if options.output:
            print("the same command goes on from here", file=sys.stderr)
        raise
    finally:
        progress.end()
    print(json.dumps(result) if options.json else f"\n{fit.render(result)}")
    if options.output and "winner" in result and not options.json:
        print(f"\nthe winner's recipe: {options.output / 'winner.yaml'}")
    return 0


def _count(text: str) -> int:
    """A whole number, also as 5e6."""
    try:
        return int(float(text))
    except (ValueError, OverflowError) as error:
        raise ArgumentTypeError(f"{text!r} is not a number, such as 5e6") from error


def _serve(options: Namespace) -> int:
    from budgetnet import evaluate, guard, models, serve

    listener, url = guard.listen(options.host, options.port)  # before the model: a port that is taken is told at once
    with listener:
        classifier = _classifier(options)
        classifier.network.eval()
        network = _network(options, classifier)
        examples, source = _examples(options, classifier)

        def predict(images: torch.Tensor) -> torch.Tensor:
            return evaluate.predict_logits(network, images, classifier.mean, classifier.std).softmax(1)

        demo = serve.Demo(
            name=classifier.model.name,
            parameters=models.count_parameters(classifier.network),
            engine="ONNX Runtime" if _computed_by(network)["engine"] == "onnx" else "PyTorch",
            classes=classifier.classes,
            image_size=classifier.image_size,
            predict=predict,
            examples=examples,
            source=source,
        )
        if not guard.is_loopback(listener):
            _warn(f"{options.host} is not this machine alone: whoever reaches it can send pictures, without a password")
        print(f"{url} shows {options.checkpoint}; Ctrl-C stops it", flush=True)
        limits = guard.Limits()
        guard.run(serve.application(demo, limits, [options.host]), listener, limits)
    return 0


def _examples(options: Namespace, classifier: Classifier) -> tuple[list[Any], str]:
    """Test images where they are at hand, without a download, else drawn pictures; and which of both."""
    from budgetnet import serve

    trained = _trained_on(options.checkpoint, classifier)
    asked = options.data or options.dataset
    if asked or trained.get("dataset") == "digits" or ("dataset" in trained and os.environ.get("BUDGETNET_DATA")):
        try:
            dataset = _dataset(options, classifier, trained)
            return serve.examples_of(dataset.test, dataset.classes), dataset.name
        except DataError:
            if asked:
                raise
    return serve.drawn_examples(classifier.image_size), "drawn"


def _report(options: Namespace) -> int:
    from budgetnet import devices, report

    path = report.write(options.folder, data=options.data, device=devices.find(options.device))
    print(json.dumps({"report": str(path)}) if options.json else path)
    return 0


def _compare(options: Namespace) -> int:
    import tempfile

    from budgetnet import compare, compare_page, store

    if bool(options.folders) == bool(options.experiment):
        raise ConfigError("give run folders, or --experiment NAME, and not both")
    with tempfile.TemporaryDirectory() as folder:
        folders = options.folders
        if options.experiment:
            folders, without = store.fetch(options.experiment, Path(folder))
            if without:
                _warn(f"{without} runs of {options.experiment} have no record in MLflow yet and are left out")
        comparison = compare.compare(folders)
        if options.output:
            compare_page.write(comparison, options.output)
    if options.json:
        print(json.dumps(comparison.to_dict()))
    else:
        compare.show(comparison)
        if options.output:
            print(f"written to {options.output}")
    return 0


def _track(options: Namespace) -> int:
    import contextlib

    import numpy as np

    from budgetnet import checkpoint, folder, tracking

    def load_network(path: Path) -> tuple[torch.nn.Module, Any]:
        best = checkpoint.load_classifier(path)
        return best.network, np.zeros((2, len(best.mean), best.image_size, best.image_size), np.float32)

    # Held, as a run that is training sends its record itself, and would be said to have ended.
    there = options.folder.is_dir()
    with folder.hold(options.folder, _warn) if there else contextlib.nullcontext():
        print(tracking.send(options.folder, load_network=load_network, warn=_warn))
    return 0


def _verify(options: Namespace) -> int:
    from dataclasses import asdict

    from budgetnet import data

    path = options.path or data.default_folder()
    found = data.verify(path)
    if options.json:
        print(json.dumps({"path": str(path), **asdict(found)}))
        return 0
    print(f"{path}: {found.kind}, {found.images:,} images")
    for line in found.lines:
        print(f"  {line}")
    return 0


def _stats(options: Namespace) -> int:
    from budgetnet import data

    path = options.path or data.default_folder()
    images, classes = data.read_training(path)
    found = data.stats(images)
    # Labels may end below the last class.
    counts = {name: found.counts[i] if i < len(found.counts) else 0 for i, name in enumerate(classes)}
    if options.json:
        print(json.dumps({"path": str(path), "images": len(images.images), **vars(found), "counts": counts}))
        return 0
    print(f"{path}: {len(images.images):,} images")
    for name, count in counts.items():
        print(f"  {name:<20} {count:>8,}")
    print("  mean " + " ".join(f"{x:.5f}" for x in found.mean))
    print("  std  " + " ".join(f"{x:.5f}" for x in found.std))
    return 0


def _download(options: Namespace) -> int:
    from budgetnet import data
    from budgetnet.download import download

    progress = _progress(False, sys.stderr)
    try:
        folder = download(options.name, options.data or data.default_folder(), progress=progress.download)
    finally:
        progress.end()
    print(folder)
    return 0


def _classifier(options: Namespace) -> Classifier:
    """The model, on the device that it shall run on."""
    from dataclasses import replace

    from budgetnet import checkpoint, devices

    if options.precision == "int8" and options.engine == "torch":
        raise ConfigError("--precision int8 is computed by ONNX Runtime: leave out --engine torch")
    on_cpu = options.engine == "onnx" or options.precision == "int8"
    device = devices.find("cpu" if on_cpu and options.device == "auto" else options.device)
    if on_cpu and device.type != "cpu":
        raise ConfigError(f"ONNX Runtime, and so int8, computes on the CPU: leave out --device {options.device}")
    classifier = checkpoint.load_classifier(options.checkpoint, options.model)
    return replace(classifier, network=classifier.network.to(device))


def _warn(text: str) -> None:
    print(f"budgetnet: warning: {text}", file=sys.stderr)


def _version() -> str:
    from budgetnet import __version__

    return __version__
