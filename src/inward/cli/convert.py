"""`inward convert coconut`: the Coconut paper's own files into ours, and back.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from inward.cli.options import UsageError, _go, unknown


def convert(words: list[str]) -> int:
    """Convert the files of a paper's own code."""
    kinds = {"coconut": ConvertCoconut}
    if not words or words[0] in ("-h", "--help"):
        print("usage: inward convert coconut FROM TO [options]; inward convert coconut --help")
        return 0
    kind, *rest = words
    if kind not in kinds:
        raise UsageError(unknown("kind of files", kind, kinds))
    return _go(kinds[kind], f"convert {kind}", rest)


@dataclass(kw_only=True)
class ConvertCoconut:
    """A checkpoint of the Coconut paper's trainer becomes a model folder (--base), a model folder
    or run becomes such a checkpoint; its YAML arguments become a recipe for `inward train FILE`, a
    recipe becomes YAML."""

    source: Path
    """their checkpoint or arguments (.yaml); or our folder or recipe (.json)"""
    target: Path
    """what is written: a folder, a recipe (.json); or a checkpoint, arguments (.yaml)"""
    base: str | None = None
    """the model that the checkpoint was trained from: its shape and its tokenizer"""
    thoughts: int = 6
    """of a checkpoint: thoughts behind a question (c_thought times max_latent_stage)"""
    processes: int = 4
    """of arguments: GPUs that the official trainer would run on"""
    records: int = 0
    """of arguments: number of training records; 0: the file is read"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.common.files import check_target, check_target_file

        if self.processes < 1 or self.records < 0 or self.thoughts < 0:
            raise ValueError(
                f"processes {self.processes} must be 1 or more, records {self.records} and "
                f"thoughts {self.thoughts} 0 or more"
            )
        suffix = self.source.suffix
        if suffix in (".yaml", ".yml") or suffix == ".json":
            check_target_file(self.target)
            return self._recipe() if suffix == ".json" else self._arguments()
        if self.source.is_file():
            check_target(self.target)
            return self._in()
        check_target_file(self.target)
        return self._out()

    def _in(self) -> int:
        from inward import hub
        from inward.common.files import new_folder
        from inward.methods.coconut.reference import asked_as, load_reference

        if self.base is None:
            raise UsageError("name what the checkpoint was trained from: --base FOLDER")
        if self.target.exists():
            raise ValueError(f"{self.target} exists; remove it, or choose another folder")
        model = load_reference(self.source, self.base)
        with new_folder(self.target) as folder, hub.quiet():
            model.save_pretrained(folder)
            asked = asked_as(model, self.thoughts)
            hub.write_about(folder, processor={"kind": "tokenizer", "after": "\n"}, ask=asked)
        print(f"model: {self.target}   (inward ask {self.target} ...)")
        return 0

    def _out(self) -> int:
        from inward import hub
        from inward.methods.coconut.model import Coconut
        from inward.methods.coconut.reference import save_reference

        model = hub.load(self.source, **({} if self.base is None else {"base": self.base}))
        if not isinstance(model, Coconut):
            raise ValueError(f"{self.source} is a {type(model).__name__}, no Coconut model")
        save_reference(model, self.target)
        print(f"state dict: {self.target}   (load_model_path of the official arguments)")
        return 0

    def _arguments(self) -> int:
        from inward.common.files import write_json
        from inward.recipes.coconut_args import recipe_of_args

        options = {"processes": self.processes, "num_records": self.records}
        recipe, notes = recipe_of_args(self.source, **options)
        write_json(self.target, asdict(recipe))
        for note in notes:
            print(note)
        print(f"recipe: {self.target}   (inward train {self.target})")
        return 0

    def _recipe(self) -> int:
        import yaml

        from inward.common.files import replacing
        from inward.recipes.coconut_args import args_of_recipe
        from inward.recipes.of import read_recipe

        options = {"processes": self.processes, "num_records": self.records}
        found = args_of_recipe(read_recipe(self.source), **options)
        with replacing(self.target) as partial:
            Path(partial).write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
        print(f"arguments: {self.target}")
        return 0
