"""Search with any number of workers: what is drawn, pruned, refused, put back and found."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from postgres import PASSWORD, postgres, program

from budgetnet import space, standings, studies, sweep
from budgetnet.cli import main
from budgetnet.errors import BudgetnetError, ConfigError, FolderError, Interrupted, TrainingError
from budgetnet.metrics import Metrics
from budgetnet.progress import Progress
from budgetnet.recipe import load_recipe
from budgetnet.space import Choice, Range
from budgetnet.sweep import Sweep
from budgetnet.training import Training

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "recipes" / "smoke.yaml"
SPACE = ROOT / "examples" / "spaces" / "smoke.yaml"
KILLED = ROOT / "reliability" / "killed.py"
LR = {"optimizer.lr": Range(low=0.001, high=1.0, log=True)}
SHORT = ["--epochs", "2", "--train-size", "160", "--batch-size", "32"]

# ---------------------------------------------------------------------------------------------------- made-up trainings


class Said(Progress):
    """All that was said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.lines.append(f"warning: {text}")

    def __str__(self):
        return "\n".join(self.lines)


def made_up(monkeypatch, curve, during=lambda config, epoch: None):
    """Put a training in place of the real one, whose accuracy after an epoch is `curve(config, epoch)`."""

    def train(config, run, *, progress, resume, stop, test, tags, track, **options):
        assert not test
        assert not track
        assert resume == (run / "config.yaml").is_file()
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").touch()
        metrics = Metrics(run / "metrics.csv")
        done = len((run / "metrics.csv").read_text().splitlines()) - 1 if (run / "metrics.csv").is_file() else 0
        progress.begin(config, None, run, {})
        for epoch in range(done + 1, config.epochs + 1):
            during(config, epoch)
            row = {"epoch": epoch, "val_accuracy": curve(config, epoch), "seconds": 6.0 * epoch}
            metrics.append(row)
            progress.epoch(row, True)
            if stop():
                raise Interrupted
        best = max(curve(config, epoch) for epoch in range(1, config.epochs + 1))
        return {"final": {"val_accuracy": best, "epochs": config.epochs, "minutes": 0.1 * config.epochs}}

    monkeypatch.setattr(sweep, "train", train)


def by_rate(config, epoch):
    """Best at a learning rate of 0.1, and better with each epoch."""
    return 0.9 - abs(0.1 - config.optimizer.lr) / 2 - 0.1 / epoch


def carry_out(output, *, trials=6, varied=LR, always=(), progress=None, pruner="none", **options):
    asked = Sweep(recipe=SMOKE, space=varied, trials=trials, always=always, pruner=pruner)
    return sweep.carry_out(asked, output, progress=progress or Said(), track=False, **options)


def drawn(result):
    return [(row["trial"], row["outcome"], row["options"], row["val_accuracy"]) for row in result["trials"]]


def test_a_trial_whose_value_has_yet_to_come_is_running_and_where_its_worker_died_is_put_back():
    study = optuna.create_study(direction="maximize")
    trial = study.ask({"optimizer.lr": optuna.distributions.FloatDistribution(0.1, 1.0)})
    trial.set_user_attr("trial", 0)
    trial.set_user_attr("ended", {"outcome": "finished", "epochs": 2, "minutes": 0.1})

    def outcome():
        (row,) = standings.summarize(study, study.get_trials(), torch.device("cpu"))["trials"]
        return row["outcome"]

    assert outcome() == "running"
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert outcome() == "stopped"
    studies.put_back(study, study.trials[0])
    assert study.trials[-1].state == optuna.trial.TrialState.WAITING
    assert study.trials[-1].user_attrs == {"trial": 0, "tries": 1}


def test_the_best_trial_is_a_recipe_that_train_takes(tmp_path, monkeypatch, capsys):
    made_up(monkeypatch, by_rate)
    result = carry_out(tmp_path / "out", trials=8)
    assert [row["trial"] for row in result["trials"]] == list(range(8))
    assert {row["outcome"] for row in result["trials"]} == {"finished"}
    assert result["best"] == max(result["trials"], key=lambda row: row["val_accuracy"])
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(json.dumps(result))
    best = load_recipe(tmp_path / "out" / "best.yaml")
    smoke = load_recipe(SMOKE)
    rate = float(result["best"]["options"]["optimizer.lr"])
    assert best == replace(smoke, optimizer=replace(smoke.optimizer, lr=rate))
    assert main(["train", str(tmp_path / "out" / "best.yaml"), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == rate


def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    varied = LR | {
        "batch_size": Range(low=8, high=64, whole=True, step=8),
        "init": Choice(values=("default", "kaiming")),
    }
    steps = []
    made_up(monkeypatch, by_rate, lambda config, epoch: steps.append(epoch))
    whole = carry_out(tmp_path / "whole", trials=12, varied=varied)
    count = len(steps)
    steps.clear()
    stops = 0
    while True:
        before = len(steps)
        try:
            result = carry_out(
                tmp_path / "stopped",
                trials=12,
                varied=varied,
                stop=lambda: len(steps) >= before + 10,  # noqa: B023
            )
            break
        except Interrupted:
            stops += 1
    assert stops == 3
    assert drawn(result) == drawn(whole)
    assert len(steps) == count, "no epoch was trained twice"
    assert len({row["options"]["optimizer.lr"] for row in whole["trials"]}) == 12


def test_more_trials_of_a_study_begin_where_it_ended(tmp_path, monkeypatch):
    made_up(monkeypatch, by_rate)
    carry_out(tmp_path / "out", trials=3)
    more = carry_out(tmp_path / "out", trials=5)
    assert drawn(more) == drawn(carry_out(tmp_path / "at once", trials=5))
    assert carry_out(tmp_path / "out", trials=2)["trials"] == more["trials"]


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_trial_that_does_worse_than_others_at_the_same_epoch_is_pruned(pruner, tmp_path, monkeypatch):
    made_up(monkeypatch, by_rate)
    result = carry_out(tmp_path, trials=11, always=["--epochs", "6"], pruner=pruner)
    pruned = [row for row in result["trials"] if row["outcome"] == "pruned"]
    finished = [row for row in result["trials"] if row["outcome"] == "finished"]
    assert pruned
    assert finished
    assert all(row["epochs"] < 6 for row in pruned)
    assert all(row["epochs"] == 6 for row in finished)
    if pruner == "median":
        assert [row["trial"] for row in finished][:5] == [0, 1, 2, 3, 4]
        for row in pruned:
            before = [r for r in finished if r["trial"] < row["trial"]]
            at_its_epoch = [r["val_accuracy"] + 0.1 / 6 - 0.1 / row["epochs"] for r in before]
            assert row["val_accuracy"] < statistics.median(at_its_epoch) + 1e-9


def test_a_network_over_the_budget_is_refused_before_training_and_told_as_infeasible(tmp_path, monkeypatch):
    trained = []
    made_up(monkeypatch, lambda config, epoch: 0.5, lambda config, epoch: trained.append(config.model.width))
    varied = {"model.name": Choice(values=("enhanced", "resnet18")), "optimizer.lr": LR["optimizer.lr"]}
    progress = Said()
    result = carry_out(
        tmp_path,
        varied=varied,
        trials=8,
        progress=progress,
        always=["--model", '{"name": "enhanced", "stages": null, "width": 16}', "--budget", "1000000"],
    )
    refused = [row for row in result["trials"] if row["outcome"] == "refused"]
    others = [row for row in result["trials"] if row["outcome"] != "refused"]
    assert len(others) == 8, "what is refused is no trial"
    assert all(row["parameters"] <= 1_000_000 for row in others)
    if not refused:
        pytest.fail("nothing was over the budget")
    assert all(row["parameters"] > 1_000_000 and "over the budget" in row["why"] for row in refused)
    assert all(not (tmp_path / "trials" / f"trial-{row['trial']}").exists() for row in refused)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.load_study(study_name=tmp_path.name, storage=storage)
    for trial in study.trials:
        over = trial.user_attrs["drawn"]["parameters"] / 1_000_000 - 1
        assert trial.constraints == {"budget": pytest.approx(over)}
        assert trial.state.name == ("PRUNED" if over > 0 else "COMPLETE")
    assert len([line for line in progress.lines if "refused before training" in line]) == len(refused)


def test_a_configuration_that_fails_its_checks_is_refused_like_one_over_the_budget(tmp_path, monkeypatch):
    made_up(monkeypatch, lambda config, epoch: 0.5)
    varied = {"augment.policy": Choice(values=("none", "rand")), "augment.policy_ops": Choice(values=("null", "2"))}
    result = carry_out(tmp_path, varied=varied, trials=6)
    for row in result["trials"]:
        impossible = row["options"] == {"augment.policy": "none", "augment.policy_ops": "2"}
        assert (row["outcome"] == "refused") == impossible
    assert sum(row["outcome"] == "finished" for row in result["trials"]) == 6


def test_a_space_in_which_nothing_fits_is_told_instead_of_searched_for_ever(tmp_path, monkeypatch):
    made_up(monkeypatch, by_rate)
    monkeypatch.setattr(sweep, "MOST_REFUSED", 7)
    with pytest.raises(ConfigError, match=r"^7 configurations in a row were refused, the last one: residual has"):
        carry_out(tmp_path, always=["--budget", "100"])


def test_a_training_that_fails_is_told_to_the_sampler_and_the_search_goes_on(tmp_path, monkeypatch):
    def diverge(config, epoch):
        if config.optimizer.lr > 0.1 and epoch == 2:
            raise TrainingError("the loss is nan")

    made_up(monkeypatch, by_rate, diverge)
    result = carry_out(tmp_path)
    for row in result["trials"]:
        failed = float(row["options"]["optimizer.lr"]) > 0.1
        assert (row["outcome"], row["why"], row["epochs"]) == (
            ("failed", "the loss is nan", 1) if failed else ("finished", "", 3)
        )
    assert {row["outcome"] for row in result["trials"]} == {"failed", "finished"}
    with pytest.raises(TrainingError, match=r"^no trial came to its end; the last one: the loss is nan"):
        carry_out(tmp_path / "all", varied={"optimizer.lr": Range(low=0.5, high=1.0)}, trials=3)
    assert not (tmp_path / "all" / "best.yaml").exists()


def test_an_error_that_says_nothing_of_the_options_puts_the_trial_back(tmp_path, monkeypatch):
    full = [True]

    def fill(config, epoch):
        if full and epoch == 2:
            full.clear()
            raise FolderError("the disk is full")

    made_up(monkeypatch, by_rate, fill)
    with pytest.raises(FolderError, match="the disk is full"):
        carry_out(tmp_path / "out", trials=2)
    result = carry_out(tmp_path / "out", trials=2)
    made_up(monkeypatch, by_rate)
    assert drawn(result) == drawn(carry_out(tmp_path / "well", trials=2))
    assert result["trials"][0]["deaths"] == 0


def lose(storage):
    """Do as who finds that the worker of the first trial is dead."""
    study = optuna.load_study(study_name="out", storage=storage)
    study.tell(study.trials[0].number, state=optuna.trial.TrialState.FAIL)
    studies.put_back(study, study.trials[0])
    return True


@pytest.mark.parametrize("stopped", [False, True])
def test_a_trial_that_was_given_to_another_worker_after_its_last_epoch_is_left_to_it_too(
    stopped, tmp_path, monkeypatch
):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    rows = tmp_path / "out" / "trials" / "trial-0" / "metrics.csv"
    lost = []

    def stop():
        if not lost and rows.is_file() and len(rows.read_text().splitlines()) == 4:  # three epochs
            lost.append(lose(storage))
        return bool(lost) and stopped

    made_up(monkeypatch, by_rate)
    progress = Said()
    if stopped:
        with pytest.raises(Interrupted):
            carry_out(tmp_path / "out", trials=2, storage=storage, progress=progress, stop=stop)
    else:
        result = carry_out(tmp_path / "out", trials=2, storage=storage, progress=progress, stop=stop)
        assert [row["outcome"] for row in result["trials"]] == ["finished", "finished"]
    assert len([line for line in progress.lines if "trial 0 is left to another worker" in line]) == 1
    states = [trial.state.name for trial in optuna.load_study(study_name="out", storage=storage).trials]
    assert states == (["FAIL", "WAITING"] if stopped else ["FAIL", "COMPLETE", "COMPLETE"])


def test_a_bug_in_a_trial_that_was_given_to_another_worker_is_still_a_bug(tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def broken(config, epoch):
        lose(storage)
        raise ZeroDivisionError

    made_up(monkeypatch, by_rate, broken)
    with pytest.raises(ZeroDivisionError):
        carry_out(tmp_path / "out", trials=2, storage=storage)


def test_an_error_of_ours_is_no_trial_of_another_worker(tmp_path, monkeypatch):
    def broken(config, epoch):
        raise ValueError("a bug")

    made_up(monkeypatch, by_rate, broken)
    with pytest.raises(ValueError, match="a bug"):
        carry_out(tmp_path / "out", trials=2)


def test_a_trial_that_was_given_to_another_worker_is_left_to_it(tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    seen = []

    def seem_dead(config, epoch):
        if not seen and epoch == 2:
            seen.append(lose(storage))

    made_up(monkeypatch, by_rate, seem_dead)
    progress = Said()
    result = carry_out(tmp_path / "out", trials=2, storage=storage, progress=progress)
    assert [row["outcome"] for row in result["trials"]] == ["finished", "finished"]
    assert result["trials"][0]["deaths"] == 1
    assert len([line for line in progress.lines if "trial 0 is left to another worker" in line]) == 1


def test_a_trial_whose_workers_die_again_and_again_is_given_up(tmp_path):
    study = optuna.create_study()
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.set_user_attr("trial", 5)
    for deaths in range(1, studies.MOST_DEATHS + 2):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        studies.put_back(study, study.trials[trial.number])
        assert len(study.trials) == min(deaths, studies.MOST_DEATHS) + 1
        if deaths <= studies.MOST_DEATHS:
            again = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            assert again.params == trial.params
            assert again.user_attrs == {"trial": 5, "tries": deaths}
            trial = again


def test_what_is_wrong_with_a_sweep_is_said_before_anything_trains(tmp_path):
    def refused(words, **options):
        with pytest.raises(ConfigError) as caught:
            carry_out(tmp_path / "out", **options)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out" / "trials").exists()

    refused("trials is 0", trials=0)
    refused("pruner is 'best'", pruner="best")
    refused("val_size is 0", always=["--val-size", "0"])
    refused("--optimizer.lr is in the space too", always=["--optimizer.lr", "1"])
    refused("--optimizer.rate is not an option", always=["--optimizer.rate", "1"])
    refused("storage is 'mysql://***@host/db', expected sqlite", storage="mysql://me:secret@host/db")


def test_a_study_of_something_else_is_refused_with_what_differs(tmp_path, monkeypatch):
    made_up(monkeypatch, by_rate)
    carry_out(tmp_path, trials=1)
    with pytest.raises(ConfigError, match=r"^recipe.epochs is 2, but study '.*' was begun with 3: go on with that, or"):
        carry_out(tmp_path, trials=1, always=["--epochs", "2"])
    with pytest.raises(ConfigError, match=r"^space.optimizer.lr.high is 2.0, but"):
        carry_out(tmp_path, trials=1, varied={"optimizer.lr": Range(low=0.001, high=2.0, log=True)})
    with pytest.raises(ConfigError, match=r"^pruner is median, but"):
        carry_out(tmp_path, trials=1, pruner="median")
    optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="other").add_trial(
        optuna.create_trial(value=1.0)
    )
    monkeypatch.setattr(studies, "BEGIN_SECONDS", 0.0)
    with pytest.raises(ConfigError, match="'other' was not made by budgetnet sweep"):
        carry_out(tmp_path, trials=1, name="other")


def test_a_database_that_fails_is_one_line_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ATTEMPTS", 1)
    with pytest.raises(BudgetnetError) as caught:
        carry_out(tmp_path, storage="postgresql://lab:open%2Fsesame@127.0.0.1:9/none")
    assert "postgresql+pg8000://***@127.0.0.1:9/none fails" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- what is shown


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search of several options, and its folder."""

    def slow(config, epoch):
        return by_rate(config, epoch) - config.batch_size / 1000 + config.model.width / 1000

    output = tmp_path_factory.mktemp("search") / "a <sweep>"
    varied = LR | {
        "model.width": Range(low=8, high=32, whole=True, step=8),
        "schedule.period_growth": Range(low=1.0, high=2.0),
        "batch_size": Range(low=8, high=64, whole=True),
    }
    always = ["--model", '{"name": "enhanced", "stages": null}', "--epochs", "6"]
    with pytest.MonkeyPatch.context() as patched:
        made_up(patched, slow)
        return carry_out(output, trials=14, varied=varied, always=always, pruner="median"), output


@pytest.fixture
def result(found):
    return found[0]


def test_the_table_names_the_best_first_in_eighty_columns(result):
    text = standings.render(result)
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d+  +\d", line)]
    finished = sorted(
        (row for row in result["trials"] if row["outcome"] == "finished"), key=lambda row: -row["val_accuracy"]
    )
    assert [int(row[0]) for row in rows] == [row["trial"] for row in finished][:10]
    assert rows[0][1] == f"{finished[0]['val_accuracy']:.2%}"
    assert "pruned" in text
    for name, share in result["importances"].items():
        assert f"{name} {share:.0%}" in text.replace("\n", " ")


def test_importances_are_shares_of_one_and_of_few_trials_there_are_none(result, tmp_path, monkeypatch):
    assert sum(result["importances"].values()) == pytest.approx(1)
    assert set(result["importances"]) == {"optimizer.lr", "model.width", "schedule.period_growth", "batch_size"}
    assert max(result["importances"], key=result["importances"].get) == "optimizer.lr"
    made_up(monkeypatch, by_rate)
    assert carry_out(tmp_path / "few", trials=3)["importances"] == {}


def test_a_trial_is_on_a_front_if_none_that_is_as_cheap_is_as_good(result):
    finished = [row for row in result["trials"] if row["outcome"] == "finished"]
    for cost in ("parameters", "multiply_adds", "minutes"):
        for row in finished:
            mine = (row[cost], -row["val_accuracy"])
            beaten = any(
                other[cost] <= mine[0]
                and -other["val_accuracy"] <= mine[1]
                and (other[cost], -other["val_accuracy"]) != mine
                for other in finished
            )
            assert (cost in row["fronts"]) is not beaten
    assert all(not row["fronts"] for row in result["trials"] if row["outcome"] != "finished")


def test_the_picture_stands_alone_and_has_each_trial_and_each_option(found):
    result, path = found[0], found[1] / "sweep.svg"
    root = xml.etree.ElementTree.fromstring(path.read_text())
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    assert len(root.findall(f"{name}svg")) == 4
    finished = [row["trial"] for row in result["trials"] if row["outcome"] == "finished"]
    tips = [title.text for title in root.iter(f"{name}title")]
    for trial in finished:
        assert len([tip for tip in tips if tip.startswith(f"trial {trial}: ")]) == 3
    for option in result["importances"]:
        assert any(tip.startswith(f"{option}: ") for tip in tips)
    assert "a <sweep>: 14 trials" in "".join(root.itertext())
    assert not re.search(r"(href|src|url\()", path.read_text())


# ---------------------------------------------------------------------------------------------------- the command line


def command(output, *more):
    return ["sweep", str(SMOKE), "--space", str(SPACE), "--output", str(output), "--threads", "1", *more]


def test_ctrl_c_leaves_a_study_that_the_same_command_finishes(tmp_path, monkeypatch, capsys):
    calls = []

    def interrupt(config, epoch):
        calls.append(epoch)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)

    made_up(monkeypatch, by_rate, interrupt)
    arguments = command(tmp_path / "out", "--trials", "3", "--no-track", "--seed", "4", "--json")
    assert main(arguments) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("saved; the same command goes on from here\n")
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert [row["outcome"] for row in json.loads(captured.out)["trials"]] == ["finished"] * 3
    assert "trial 1: " in captured.err
    assert len(calls) == 9
    assert main(command(tmp_path / "out", "--trials", "3", "--no-track", "--seed", "4")) == 0
    assert f"the best as a recipe: {tmp_path / 'out' / 'best.yaml'}" in capsys.readouterr().out
    assert main(command(tmp_path / "out", "--trials", "3", "--no-track")) == 1
    assert capsys.readouterr().err.startswith("budgetnet: error: recipe.seed is 0, but study 'out' was begun with 4")


def test_mlflow_that_is_away_costs_one_warning_and_no_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    made_up(monkeypatch, by_rate)
    assert main(command(tmp_path / "out", "--trials", "2")) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("budgetnet: warning: MLflow tracking is off: starting the run failed at http://***@127")
    assert errors[0].endswith(f"everything is kept in {tmp_path / 'out'}")


# ---------------------------------------------------------------------------------------------------- real trainings


def environment(**more):
    paths = [str(ROOT / "src"), os.environ["PYTHONPATH"]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def test_a_worker_killed_in_a_trial_has_it_finished_by_the_next_one_from_its_checkpoint(tmp_path, monkeypatch):
    varied = space.read_space(SPACE)
    del varied["batch_size"]
    file = tmp_path / "space.yaml"
    file.write_text("".join(line for line in SPACE.read_text().splitlines(True) if "batch_size" not in line))
    steps_a_trial, epoch = 10, 5  # of 160 images in batches of 32
    dies_at = steps_a_trial + epoch + 3  # in the second epoch of the second trial
    arguments = command(tmp_path / "out", "--trials", "3", "--no-track", "--pruner", "none", *SHORT)
    arguments[arguments.index("--space") + 1] = str(file)
    died = subprocess.run(
        [sys.executable, str(KILLED), "step", str(dies_at), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    taken = []
    update = Training.update
    monkeypatch.setattr(Training, "update", lambda self, *rest: (taken.append(1), update(self, *rest))[1])
    monkeypatch.setattr(studies, "GRACE_SECONDS", 1)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.2)
    progress = Said()
    result = carry_out(tmp_path / "out", trials=3, varied=varied, always=SHORT, progress=progress)
    assert [row["outcome"] for row in result["trials"]] == ["finished"] * 3
    assert [row["deaths"] for row in result["trials"]] == [0, 1, 0]
    assert any(re.match(r"trial 1: .*, once more", line) for line in progress.lines)
    assert len(taken) == 3 * steps_a_trial - steps_a_trial - epoch
    whole = carry_out(tmp_path / "whole", trials=3, varied=varied, always=SHORT)
    assert drawn(result) == drawn(whole)
    assert all(
        json.loads((tmp_path / "out" / "trials" / f"trial-{i}" / "summary.json").read_text())["test"] == {}
        for i in range(3)
    )


@pytest.fixture(scope="module")
def databases():
    if not (program("initdb") and program("postgres")):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    with postgres() as make:
        yield make


@pytest.mark.slow
def test_two_workers_on_postgresql_share_a_study_and_train_each_trial_once(databases, tmp_path):
    uri = databases("sweeps").replace("+pg8000", "")
    assert "open%2Fsesame" in uri
    arguments = ["--trials", "6", "--no-track", "--pruner", "none", "--study", "shared"]
    arguments += ["--epochs", "1", "--train-size", "64", "--val-size", "100"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "budgetnet", *command(tmp_path / name, *arguments, "--json")],
            env=environment(BUDGETNET_STORAGE=uri),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")  # as on two machines, which share no folder
    ]
    ended = [worker.communicate(timeout=170) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ended
    found = [json.loads(out) for out, _ in ended]
    assert drawn(found[0]) == drawn(found[1])
    assert [row["trial"] for row in found[0]["trials"]] == list(range(6))
    assert {row["outcome"] for row in found[0]["trials"]} == {"finished"}
    assert len({row["options"]["optimizer.lr"] for row in found[0]["trials"]}) == 6
    folders = [{path.name for path in (tmp_path / name / "trials").glob("*")} for name in ("one", "two")]
    assert folders[0] | folders[1] == {f"trial-{index}" for index in range(6)}
    assert not folders[0] & folders[1]
    assert (tmp_path / "one" / "best.yaml").read_text() == (tmp_path / "two" / "best.yaml").read_text()
    said = [text for pair in ended for text in pair]
    said += [path.read_text() for path in tmp_path.rglob("sweep.json")]
    assert not any("sesame" in text or PASSWORD in text for text in said)
    assert found[0]["storage"].startswith("postgresql+pg8000://***@127.0.0.1")


def test_each_trial_is_a_child_of_the_studys_run_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    progress = Said()
    asked = Sweep(recipe=SMOKE, space=LR, trials=2, always=["--epochs", "1", "--train-size", "64"])
    for trials in (1, 2):  # as two workers do
        result = sweep.carry_out(replace(asked, trials=trials), tmp_path / "out", progress=progress)
    assert not [line for line in progress.lines if "warning" in line]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("budgetnet")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"out", "trial-0", "trial-1"}
    parent = found["out"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == set(standings.FILES)
    for index in range(2):
        child = found[f"trial-{index}"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["budgetnet.study"] == "out"
        assert child.data.params["optimizer.lr"] == result["trials"][index]["options"]["optimizer.lr"]
        assert child.data.metrics["val_accuracy"] == result["trials"][index]["val_accuracy"]
