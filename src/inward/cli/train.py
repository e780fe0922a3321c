"""`inward train`: run a recipe, with any of its fields set on the command line."""

from __future__ import annotations

import os
from dataclasses import asdict, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from inward.cli.options import UsageError, _console, parse, unknown


def train(words: list[str]) -> int:
    """Run a recipe, or list them."""
    from inward.recipes import RECIPES, find

    if not words or words[0] == "--list":
        width = max(map(len, RECIPES))
        print("inward train RECIPE [--field value ...] [--out DIR] [--resume]\n")
        for name in RECIPES:
            print(f"  {name:<{width}}  {find(name)().about}")
        return 0
    name, *rest = words
    if name in ("-h", "--help"):
        print("usage: inward train RECIPE [options]; inward train lists the recipes (RECIPE may be")
        print("       a .json file that a run or inward convert wrote),")
        print("       inward train RECIPE --help shows every field with its default")
        return 0
    if name.startswith("-"):
        raise UsageError(f"name the recipe before its options: inward train RECIPE {name} ...")
    recipe = recipe_named(name)
    options = parse(_overrides(recipe), rest, f"inward train {name}")
    if options is None:
        return 0
    changed = {f.name: getattr(options, f.name) for f in fields(options)}
    out, resume, other = (changed.pop(name) for name in ("out", "resume", "other_data"))
    if (parallel := changed.pop("parallel")) is not None:
        said = changed["train"].parallel
        if said not in (recipe.train.parallel, parallel):
            raise UsageError(f"--parallel says {parallel}, --train.parallel says {said}; say one")
        changed["train"] = replace(changed["train"], parallel=parallel)
    return _train_recipe(replace(recipe, **changed), out, resume=resume, other_data=other)


def recipe_named(name: str) -> Any:
    """A recipe of that name, or of a .json file that a run or `inward convert` wrote."""
    from inward.recipes import RECIPES, find

    if name.endswith(".json"):
        from inward.recipes.of import read_recipe

        return read_recipe(Path(name))
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES))
    return find(name)()


def recipe_entries(recipe: Any) -> list[Any]:
    """A recipe's fields for `make_dataclass`, with its values as defaults."""
    hints = get_type_hints(type(recipe))
    entries: list[Any] = []
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        # the type of the value, not of the field: a union would offer a choice of data sets
        kind = type(value) if is_dataclass(value) else hints[entry.name]
        if entry.name not in ("name", "about"):
            entries.append((entry.name, kind, field(default=value)))
    return entries


def _overrides(recipe: Any) -> type:
    """A dataclass of the recipe's fields, with its values as defaults, and where to write."""
    entries = recipe_entries(recipe)
    entries.append(("out", Path, field(default=Path("runs") / recipe.name)))
    entries.append(("resume", bool, field(default=False)))
    entries.append(("other_data", bool, field(default=False)))
    entries.append(("parallel", Literal["ddp", "fsdp", "hsdp"] | None, field(default=None)))
    about = (
        f"{recipe.about}\n\n--out is the folder of the run. A run that stopped goes on by the same "
        "command; --resume insists that there is one; --other-data lets it go on with other data "
        "than it began with. --parallel is --train.parallel, for several processes (torchrun)."
    )
    return make_dataclass("Train", entries, namespace={"__doc__": about})


def _train_recipe(recipe: Any, out: Path, *, resume: bool, other_data: bool) -> int:
    from inward import hub
    from inward.common.files import check_free
    from inward.recipes.trm import TRMRecipe
    from inward.train import train as train_run
    from inward.train.sharding import check_parallel

    if resume and not (out / "states").is_dir():
        raise ValueError(f"there is no run to resume in {out}; name its folder with --out")
    check_free(out)  # before data is made, which may take long
    check_parallel(recipe.train, int(os.environ.get("WORLD_SIZE", "1")))
    main = os.environ.get("RANK", "0") == "0"
    with hub.quiet():
        if hasattr(recipe, "settled"):
            recipe = recipe.settled()
        run = recipe.build()
        if other_data:
            if not run.data_keys:
                raise ValueError(f"{recipe.name} makes its own data; leave --other-data out")
            run.other_data = True
        notes = (*run.notes, *(recipe.notes() if isinstance(recipe, TRMRecipe) else ()))
        for note in notes if main else ():
            print(note)
        summary = train_run(run, recipe.train, out)
    if not main:
        return 0
    from inward.data.puzzles.folder import write_json
    from inward.thinker import about_of

    write_json(out / "model" / "recipe.json", asdict(recipe))
    hub.write_about(out / "model", **about_of(recipe, run.model))
    console = _console()
    for name, value in summary.items():
        console.print(f"  {name:<20}{value}", highlight=False, soft_wrap=True)
    console.print(f"model: {out / 'model'}   (inward ask {out / 'model'} ...)", highlight=False)
    for command in commands(recipe, out):
        print(f"  {command}")
    return 0


def commands(recipe: Any, out: Path) -> list[str]:
    """What can be done with the run that a recipe made: commands that can be typed as they are."""
    import shlex

    from inward import hub
    from inward.recipes.huginn import TokenData

    where = shlex.quote(str(out))
    reads = hub.door(hub.method_of(out / "model")).reads
    found = [_ask_command(recipe, out, reads)]
    found += [f"inward chat {where}"] if reads == "text" else []
    # tokens without a question have no right answer
    found += (
        [] if isinstance(getattr(recipe, "data", None), TokenData) else [f"inward eval {where}"]
    )
    found += [f"inward bench {where}"]
    return [command for command in found if command]


def _ask_command(recipe: Any, out: Path, reads: str) -> str:
    """The command that asks a held-out question; puzzles are put into a file."""
    import shlex

    from inward.evals.questions import example

    question = example(recipe)
    if not question:
        return ""
    where = shlex.quote(str(out))
    if reads == "text":
        return f"inward ask {where} {shlex.quote(question)}"
    from inward.common.files import replacing

    with replacing(out / "example.txt") as partial:
        partial.write_text(question + "\n", encoding="utf-8")
    return f"inward ask {where} --file {shlex.quote(str(out / 'example.txt'))}"
