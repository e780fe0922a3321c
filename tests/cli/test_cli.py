"""The command line in this process: exit codes, one-line errors, and every verb once for real."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inward import hub
from inward.cli.main import VERBS, main
from inward.common.trace import read_traces
from inward.data.puzzles import maze, sudoku
from inward.data.puzzles.puzzles import Puzzles
from inward.methods.trm.model import TRM
from inward.recipes import RECIPES, find
from inward.recipes.trm import TRMRecipe
from inward.recipes.trm_data import MazeData, SudokuData
from inward.tasks.maze import MazeTask

SUDOKU = "1..............2"
MAZE = "#####\n#S  #\n### #\n#G  #\n#####"


def tiny_recipes() -> list[TRMRecipe]:
    """The small recipes with hardly any data and weights."""
    small = {"hidden_size": 16, "swiglu_multiple": 16, "n_sup": 2, "T": 1, "n": 1}
    four, eleven = find("sudoku4")(), find("maze11")()
    return [
        replace(
            four,
            model=replace(four.model, **small),
            data=SudokuData(n=4, num_train=30, num_valid=5, num_test=12),
        ),
        replace(
            eleven,
            model=replace(eleven.model, seq_len=49, **small),
            data=MazeData(sizes=(5, 7), canvas=7, num_valid=3, num_test=9),
        ),
    ]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Random models with their recipes, in the form in which checkpoints ship."""
    root = tmp_path_factory.mktemp("checkpoints")
    for recipe in tiny_recipes():
        torch.manual_seed(1)
        TRM(recipe.model).save_pretrained(root / recipe.name)
        (root / recipe.name / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return root


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, checkpoints):
    """Every test in a folder of its own, with the tiny models shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "SHIPPED", checkpoints)
    monkeypatch.delenv("INWARD_DEBUG", raising=False)


def one_line(capsys) -> str:
    """The only line of standard error."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("inward: "), (out, err)
    return err


# --- the frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(capsys, words):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)


def test_version(capsys):
    from inward import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"inward {__version__}\n"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "data"])
def test_every_verb_has_help(capsys, verb):
    words = [verb, "sudoku4", "--help"] if verb == "train" else [verb, "--help"]
    assert main(words) == 0
    assert f"usage: inward {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sudoku", "maze", "arc", "show"])
def test_every_kind_of_data_has_help(capsys, kind):
    assert main(["data", kind, "--help"]) == 0
    assert f"usage: inward data {kind}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, told",
    [
        (["trian"], "did you mean 'train'?"),
        (["xyzzy"], "choose one of demo, ask, chat, serve, train"),
        (["train", "sudokku4"], "did you mean 'sudoku4'?"),
        (["train", "--train.steps", "3"], "name the recipe before its options"),
        (["train", "sudoku4", "--train.stepz", "3"], "did you mean --train.steps?"),
        (["train", "sudoku4", "--train.steps", "x"], "--train.steps: invalid literal"),
        (["train", "sudoku4", "--train.steps", "0"], "steps is 0, but must be 1 or more"),
        (["train", "sudoku4", "--model.mixer", "rnn"], "Expected one of"),
        (["train", "sudoku4", "--model.expansion"], "Missing value"),
        (["train", "sudoku4", "extra"], "Unrecognized options: extra"),
        (["eval"], "MODEL"),
        (["eval", "sudoku4", "--hallt", "q"], "did you mean --halt?"),
        (["data", "mase"], "did you mean 'maze'?"),
        (["data", "maze", "m.npz", "--sise", "7"], "did you mean --size?"),
        (["demo", "--num", "many"], "--num"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(capsys, words, told):
    assert main(words) == 2
    assert told in one_line(capsys)


@pytest.mark.parametrize(
    "words, told",
    [
        (["eval", "nowhere"], "shipped are: maze11, sudoku4"),
        (["eval", "sudoku4", "--num", "13"], "there are 12"),
        (["eval", "sudoku4", "--halt", "soon"], "no halting rule 'soon'"),
        (["eval", "sudoku4", "--max-steps", "-1"], "max_steps is -1"),
        (["eval", "sudoku4", "--rollouts", "2"], "without noise"),
        (["eval", "sudoku4", "--threads", "0"], "threads is 0"),
        (["eval", "sudoku4", "--size", "9"], "mazes"),
        (["eval", "sudoku4", "--task", "maze"], "--data"),
        (["eval", "sudoku4", "--data", "none.npz"], "none.npz"),
        (["eval", "sudoku4", "--figure", "f.svg", "--no-by-step"], "leave out --no-by-step"),
        (["ask", "sudoku4", "123"], "4x4 Sudoku has 16"),
        (["ask", "sudoku4", "11.............."], "contradictory clues"),
        (["ask", "maze11", "#####\n#S  #\n#####\n#G  #\n#####"], "cannot be reached"),
        (["ask", "sudoku4", "." * 36], "36 cells; a 4x4 Sudoku has 16"),
        (["ask", "sudoku4", "--file", "none.txt"], "none.txt"),
        (["ask", "sudoku4", SUDOKU, "--png", "picture.gif"], "must end in"),
        (["ask", "sudoku4", SUDOKU, "--max-new-tokens", "3"], "rewrites a whole answer"),
        (["ask", "sudoku4", SUDOKU, "--scheme", "plain"], "trm has no option scheme (of tidar)"),
        (["ask", "sudoku4", SUDOKU, "--effort", "high"], "has no effort 'high'"),
        (["data", "sudoku", "x.npz", "--n", "5"], "n is 5"),
        (["data", "maze", "x.npz", "--size", "8"], "odd"),
        (["data", "maze", "x.json"], ".npz, .csv or a folder"),
        (["data", "maze", "x.npz", "--hard", "--size", "9"], "--hard sets size"),
        (["data", "arc", "folder", "--source", "nowhere"], "nowhere"),
        (["data", "show", "nowhere.npz"], "nowhere.npz"),
        (["bench", "nothing"], "cannot bench 'nothing'"),
        (["bench", "startup", "--repeats", "0"], "repeats is 0"),
        (["demo", "--num", "0"], "num is 0"),
        (["demo", "--seed", "-1"], "seed is -1"),
        (["train", "sudoku4", "--model.vocab-size", "9"], "--model.vocab-size 6"),
        (["train", "sudoku4", "--resume"], "no run to resume in runs/sudoku4"),
    ],
)
def test_what_the_library_refuses_is_told_in_one_line(capsys, words, told):
    assert main(words) == 1
    assert told in one_line(capsys)
    assert list(Path.cwd().iterdir()) == []


def test_debug_shows_where(monkeypatch):
    monkeypatch.setenv("INWARD_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["eval", "nowhere"])


def test_ctrl_c_is_130(monkeypatch):
    import inward.cli.bench

    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(inward.cli.bench, "env", interrupted)
    assert main(["env"]) == 130


def elsewhere(*command: str) -> subprocess.CompletedProcess[str]:
    """A command in a fresh process that finds this source tree."""
    env = {**os.environ, "PYTHONPATH": str(Path(hub.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_light_verbs_do_not_import_torch():
    for words in (["--help"], ["train", "--list"], ["train", "sudoku4", "--x"], ["data", "mase"]):
        told = "'torch' in sys.modules"
        ran = elsewhere(
            sys.executable,
            "-c",
            f"import sys, inward.cli.main; inward.cli.main.main({words}); print({told})",
        )
        assert ran.stdout.splitlines()[-1] == "False", (words, ran.stderr)


def test_python_m_inward_and_a_closed_pipe():
    command = f"{sys.executable} -m inward --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    ran = elsewhere("bash", "-c", command)
    assert ran.stdout.startswith("usage: inward") and ran.stderr == ""
    assert ran.returncode in (0, 141)


def test_the_hint_survives_a_terminal_without_utf8(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ran = elsewhere(sys.executable, "-m", "inward", "eval", "sudoku4", "--hallt", "q")
    assert ran.stderr == "inward: Unrecognized options: --hallt, q; did you mean --halt?\n"
    assert ran.returncode == 2


# --- train, eval --------------------------------------------------------------------------------


def test_train_lists_the_recipes(capsys):
    assert main(["train"]) == 0
    listed = capsys.readouterr().out
    assert main(["train", "--list"]) == 0
    assert capsys.readouterr().out == listed
    assert all(f"\n  {name} " in listed for name in RECIPES)


def test_help_of_a_recipe_shows_its_own_values(capsys):
    assert main(["train", "maze11", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--data.canvas" in shown and "--data.clues" not in shown  # its data, no choice of data
    assert "--model.T" in shown and "--train.optim.lr" in shown and "0.0015" in shown
    assert "--name" not in shown


def test_a_run_from_training_to_evaluation(capsys):
    words = (
        "train sudoku4 --out runs/mine --train.steps 2 --train.batch-rows 4 --train.log-every 1 "
        "--train.progress off --data.num-train 8 --data.num-valid 4 --data.num-test 6 "
        "--model.hidden-size 16 --model.swiglu-multiple 16 --model.n-sup 2 --train.device cpu"
    ).split()
    assert main(words) == 0
    assert "runs/mine/model" in capsys.readouterr().out
    saved = json.loads(Path("runs/mine/config.json").read_text())
    assert saved["model"]["hidden_size"] == 16 and saved["train"]["steps"] == 2
    assert saved["data"]["num_train"] == 8 and saved["name"] == "sudoku4"
    assert json.loads(Path("runs/mine/model/recipe.json").read_text()) == saved

    assert main([*words, "--resume"]) == 0  # finished: nothing to do
    assert "nothing to do" in capsys.readouterr().err

    assert main(["eval", "runs/mine", "--out", "rows.jsonl", "--figure", "steps.svg"]) == 0
    shown = capsys.readouterr().out
    assert "sudoku4 test (6)" in shown and "equal to the label" in shown
    row = json.loads(Path("rows.jsonl").read_text())
    assert row["num"] == 6 and len(row["by_step"]) == 2 and row["settings"]["max_steps"] == 2
    assert row["command"] == "inward eval runs/mine --out rows.jsonl --figure steps.svg"
    assert Path("steps.svg").read_text().startswith("<?xml")


def test_eval_on_larger_mazes_and_on_files(capsys):
    assert main(["eval", "maze11", "--size", "9", "--num", "3", "--out", "a.jsonl"]) == 0
    row = json.loads(Path("a.jsonl").read_text())
    assert row["dataset"] == "maze11 9x9 test, 3 of 9 drawn by seed 0"
    assert row["settings"]["max_steps"] == round(2 * 81 / 49)  # in proportion to the cells
    maze.generate(4, size=5, seed=3).save("five.npz")
    words = "eval maze11 --data five.npz --select verify --symmetries 1 --no-by-step".split()
    words += ["--out", "a.jsonl"]
    assert main(words) == 0
    row = json.loads(Path("a.jsonl").read_text().splitlines()[1])
    assert (row["num"], row["dataset"], row["by_step"]) == (4, "five.npz", [])
    assert row["settings"]["select"] == "MazeTask.verify"
    capsys.readouterr()


# --- ask ----------------------------------------------------------------------------------------


def test_ask_prints_answer_verdict_and_cost(capsys):
    assert main(["ask", "sudoku4", SUDOKU]) == 1  # the tiny model is untrained
    answer, fault, verdict = capsys.readouterr().out.splitlines()
    assert "several solutions" in fault  # it has two clues
    assert len(answer) == 16 and set(answer) <= set("1234.")
    assert "NOT solved, by the rules, belief 0." in verdict and "2 supervision steps" in verdict


def test_ask_says_when_the_rules_accept(capsys, monkeypatch):
    from inward.tasks.sudoku import SudokuTask

    for accepted, told in ((True, "[solved, by the rules"), (False, "[NOT solved, by the rules")):
        monkeypatch.setattr(SudokuTask, "verify", lambda *_, ok=accepted: np.array([ok]))
        assert main(["ask", "sudoku4", SUDOKU]) == 1 - accepted
        assert f"\n  {told}" in capsys.readouterr().out


def test_ask_shows_draws_and_writes_the_trace(capsys):
    words = ["ask", "maze11", MAZE, "--show", "--svg", "m.svg", "--png", "m.png"]
    main([*words, "--trace", "t.jsonl", "--halt", "never", "--max-steps", "3"])
    shown = capsys.readouterr().out
    assert "question" in shown and "step 3 (answer)" in shown
    (trace,) = read_traces("t.jsonl")
    assert len(trace.steps) == 3 and trace.meta["grid"] == [5, 5] and trace.meta["task"] == "maze"
    assert trace.question.tolist() == MazeTask(5).parse(MAZE).tolist()
    assert Path("m.png").read_bytes().startswith(b"\x89PNG") and Path("m.svg").exists()


def test_ask_reads_files_and_standard_input(capsys, monkeypatch):
    import io

    Path("two.txt").write_text(f"{SUDOKU}\n{'.' * 16}\n")
    main(["ask", "sudoku4", "--file", "two.txt", "--trace", "t.jsonl"])
    assert "question 2\n" in capsys.readouterr().out and len(read_traces("t.jsonl")) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("1...\n....\n....\n...2\n"))
    main(["ask", "sudoku4", "-", "--trace", "s.jsonl"])
    rows = capsys.readouterr().out.splitlines()
    assert [len(row) for row in rows[:4]] == [4] * 4  # rows for rows
    assert (
        read_traces("s.jsonl")[0].question.tolist() == read_traces("t.jsonl")[0].question.tolist()
    )
    maze.generate(3, size=7, seed=0).save("m.npz")
    main(["ask", "maze11", "--file", "m.npz", "--json"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told) == 3 and all(len(row["tokens"]) == 49 and row["cost"] for row in told)


def test_withheld_answers_say_so(capsys):
    words = ["ask", "sudoku4", SUDOKU, "--abstain-below", "0.9999"]
    main(words)
    assert "no answer: withheld" in capsys.readouterr().out
    main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["answered"] is False


def test_one_bad_question_leaves_the_others(capsys):
    assert main(["ask", "sudoku4", SUDOKU, "123"]) == 1
    out, err = capsys.readouterr()
    assert "question 1\n" in out and "by the rules" in out and "4x4 Sudoku has 16" in err


# --- data, bench, env, demo ---------------------------------------------------------------------


def test_data_makes_files_that_show_reads(capsys):
    assert main("data sudoku a.npz --n 6 --num 3 --seed 4 --clues 20".split()) == 0
    made = Puzzles.load("a.npz")
    assert (made.inputs == sudoku.generate(3, n=6, seed=4, clues=20).inputs).all()
    assert main("data maze b.csv --size 7 --num 2 --seed 4".split()) == 0
    assert (maze.read_csv("b.csv").labels == maze.generate(2, size=7, seed=4).labels).all()
    assert main("data maze folder --size 7 --num 2 --split test".split()) == 0
    assert main("data sudoku c.npz --n 4 --num 5 --exclude c.npz".split()) == 1  # not there yet
    capsys.readouterr()
    for name, told in (("a.npz", "3 puzzles, 6x6, sudoku6"), ("b.csv", "2 puzzles, 7x7, maze")):
        assert main(["data", "show", name, "--num", "2"]) == 0
        shown = capsys.readouterr().out
        assert told in shown and shown.count("answer") == 2
    assert main(["data", "show", "folder", "--num", "0"]) == 0
    assert "2 puzzles, 7x7, maze" in capsys.readouterr().out


def test_data_excludes_what_it_is_told_to(capsys):
    assert main("data maze all.npz --size 7 --num 40 --seed 1".split()) == 0
    assert main("data maze rest.npz --size 7 --num 5 --seed 1 --exclude all.npz".split()) == 0
    keys = [maze.maze_keys(Puzzles.load(name)) for name in ("all.npz", "rest.npz")]
    assert not keys[0] & keys[1]


def test_data_builds_arc_from_task_files(capsys):
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    Path("tasks/evaluation").mkdir(parents=True)
    Path("tasks/evaluation/a.json").write_text(json.dumps({"train": [pair], "test": [pair]}))
    assert main("data arc made --source tasks --variants 2 --seed 1".split()) == 0
    assert "1 tasks, 4 identifiers" in capsys.readouterr().out
    assert main("data show made --num 1".split()) == 0
    assert "30x30, arc" in capsys.readouterr().out


def test_bench_prints_and_appends(capsys):
    assert main("bench sudoku4 --repeats 1 --rows 2 --out b.jsonl".split()) == 0
    assert "training step" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert [row["unit"] for row in rows] == ["ms", "ms", "puzzles/s", "GFLOP/s"]
    assert rows[0]["command"] == "inward bench sudoku4 --repeats 1 --rows 2 --out b.jsonl"


def test_env(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert f"torch         {torch.__version__}" in shown and "maze11, sudoku4" in shown


def test_demo_shows_every_kind_and_writes_pictures(capsys):
    assert main("demo --num 2 --seed 3 --out pictures".split()) == 0
    shown = capsys.readouterr().out
    for kind in ("Sudoku 4x4", "maze 7x7 ", "maze 15x15 (never trained on)", "maze 21x21 (never"):
        assert kind in shown
    assert shown.count("/2 ") >= 4 and "step 4 (answer)" in shown  # twice N_sup
    names = sorted(path.name for path in Path("pictures").iterdir())
    assert names == sorted(
        ["index.html"]
        + [
            f"{name}.{ending}"
            for name in ("sudoku4", "maze11-7x7", "maze11-15x15", "maze11-21x21")
            for ending in ("png", "svg")
        ]
    )


def test_demo_puzzles_are_fresh_and_depend_on_the_seed():
    from inward.demo.demo import kinds

    model = hub.load("sudoku4")
    (first,), (again,), (other,) = (
        list(kinds("sudoku4", model, seed=seed, num=5)) for seed in (0, 0, 1)
    )
    assert (first.puzzles.inputs == again.puzzles.inputs).all()
    assert (first.puzzles.inputs != other.puzzles.inputs).any()
    data = tiny_recipes()[0].data
    known = {row.tobytes() for split in ("train", "test") for row in data.puzzles(split).inputs}
    assert not known & {row.tobytes() for row in first.puzzles.inputs}


def test_demo_shows_a_hard_puzzle_that_was_solved():
    from inward.demo.demo import interesting

    yes, no = np.array([True] * 4), np.array([False] * 4)
    steps, rating = np.array([9, 2, 5, 5]), np.array([8, 4, 4, 2])
    assert interesting(yes, yes, steps, rating) == 0
    assert interesting(np.array([False, True, True, True]), yes, steps, rating) == 2
    assert interesting(yes, np.array([False, True, False, False]), steps, rating) == 1
    assert interesting(no, no, np.array([3, 8, 1, 1]), None) == 1


def test_demo_without_checkpoints_or_matplotlib(capsys, monkeypatch, tmp_path, checkpoints):
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "none")
    assert main(["demo"]) == 1
    assert "ships no checkpoint" in one_line(capsys)

    from inward.viz import plots

    only = tmp_path / "only"
    only.mkdir()
    (only / "sudoku4").symlink_to(checkpoints / "sudoku4")
    monkeypatch.setattr(hub, "SHIPPED", only)
    monkeypatch.setattr(plots, "available", lambda: False)
    assert main("demo --num 2 --out pictures".split()) == 0
    assert "No pictures will be written" in capsys.readouterr().out
    assert not Path("pictures").exists()
