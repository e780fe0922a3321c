"""`inward convert`: files of the papers' own code into ours, and back; a folder of Huginn's written
anew; a pretrained model into one that thinks in depth.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from inward.cli.options import UsageError, _go, unknown


def convert(words: list[str]) -> int:
    """Convert the files of a paper's own code, or a pretrained model."""
    kinds = {"coconut": ConvertCoconut, "huginn": ConvertHuginn, "retrofit": ConvertRetrofit}
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: inward convert coconut FROM TO [options]\n"
            "       inward convert huginn FROM TO [--standalone]\n"
            "       inward convert retrofit FROM TO [--layers P R C] [options]\n"
            "inward convert KIND --help says more"
        )
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


@dataclass(kw_only=True)
class ConvertRetrofit:
    """A Llama or OLMo-2 folder becomes a Huginn folder: its first layers the prelude, its last ones
    the coda, those before them the core that is repeated (arXiv 2511.07384). It says what the kept
    layers say, at any depth, until it is trained."""

    source: Path
    """the pretrained model's folder"""
    target: Path
    """the folder that is written"""
    layers: tuple[int, int, int] = (4, 8, 4)
    """blocks of prelude, core and coda; the default is the paper's for TinyLlama"""
    start: int | None = None
    """the layer that the core begins with; by default the core ends where the coda begins"""
    mean_recurrence: int = 8
    """depth to train for"""
    mean_backprop_depth: int = 8
    """recurrences that are back-propagated"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward import hub
        from inward.common.bases import (
            find_base,
            holds_tokenizer,
            load_causal_lm,
            open_tokenizer,
        )
        from inward.common.files import check_target, new_folder
        from inward.methods.huginn.retrofit import difference, retrofit

        if self.target.exists():
            raise ValueError(f"{self.target} exists; remove it, or choose another folder")
        check_target(self.target)
        place = find_base(str(self.source))
        with hub.quiet():
            base = load_causal_lm(place)
            depth = {"mean_recurrence": self.mean_recurrence}
            depth["mean_backprop_depth"] = self.mean_backprop_depth
            model = retrofit(base, self.layers, start=self.start, **depth)
            apart = difference(model, base, start=self.start)
            tokenizer = open_tokenizer(place) if holds_tokenizer(place) else None
            with new_folder(self.target) as folder:
                model.save_pretrained(folder)
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
        print(
            f"model: {self.target}   logits at one recurrence differ from the kept layers' by at "
            f"most {apart:.1e}"
        )
        return 0


@dataclass(kw_only=True)
class ConvertHuginn:
    """A folder of Huginn's, published (shards, any prefix or spelling) or ours, is written anew as
    transformers and this library read it; with --standalone as anybody reads it."""

    source: Path
    """a folder, a run or a shipped model"""
    target: Path
    """the new folder"""
    standalone: bool = False
    """put the model's source beside the weights: loads with trust_remote_code=True where this
    library is not installed"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        import shutil

        from inward import hub
        from inward.common.files import new_folder
        from inward.methods.huginn.model import HuginnForCausalLM

        if self.target.exists():
            raise ValueError(f"{self.target} exists; remove it, or choose another folder")
        source = hub.resolve(self.source)
        model = hub.load(source)
        if not isinstance(model, HuginnForCausalLM):
            raise ValueError(f"{self.source} is a {type(model).__name__}, no Huginn model")
        with new_folder(self.target) as folder, hub.quiet():
            model.save_pretrained(folder, standalone=self.standalone)
            for file in source.iterdir():  # tokenizer, template, how it is asked
                if file.suffix in (".json", ".jinja", ".model", ".txt") and not (
                    (folder / file.name).exists() or "safetensors" in file.name
                ):
                    shutil.copyfile(file, folder / file.name)
        print(f"model: {self.target}   (inward ask {self.target} ...)")
        return 0
