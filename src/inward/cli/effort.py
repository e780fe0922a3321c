"""`inward effort`: measure what low, medium and high shall mean for a model, and save it with it.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

from dataclasses import dataclass
from typing import Any

from inward.cli.options import _console, _go


def effort(words: list[str]) -> int:
    """Measure points of effort."""
    return _go(MeasureEffort, "effort", words)


@dataclass(kw_only=True)
class MeasureEffort:
    """Accuracy against cost on validation questions; the points go into the model's inward.json."""

    model: str
    """a shipped model's name, or the folder of a run or a model"""
    num: int = 200
    """validation questions, drawn by --seed"""
    seed: int = 0
    """of the draw"""
    max_new_tokens: int | None = None
    """of an answer; None: as the model was trained to be asked"""
    dry: bool = False
    """measure and show, save nothing"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward import hub
        from inward.evals import effort as measured
        from inward.evals.rows import command_line
        from inward.recipes.of import recipe_of
        from inward.thinker import open_thinker

        thinker = open_thinker(self.model)
        tried = measured.candidates(thinker.method, thinker)
        asked = measured.held_out(recipe_of(self.model), num=self.num, seed=self.seed)
        points = measured.measure(
            thinker, asked, tried, max_new_tokens=self.max_new_tokens, progress=self._tell
        )
        found = measured.choose(points)
        for word, point in found.get("points", {}).items():
            _console().print(f"  {word:<8}{told(point)}", highlight=False)
        if "why_not" in found:
            _console().print(f"  no dial: {found['why_not']}", highlight=False)
        if not self.dry:
            folder = hub.resolve(self.model)
            measured.save(folder, found, command_line(["effort", *words]))
            _console().print(f"  saved in {folder / hub.ABOUT}", highlight=False)
        return 0

    def _tell(self, point: Any) -> None:
        _console().print(f"  tried   {told(point.to_dict())}", highlight=False)


def told(point: dict[str, Any]) -> str:
    """One point in one line."""
    from inward.common.trace import flops_text

    low, high = point["interval"]
    options = ", ".join(f"{name}={value}" for name, value in point["own"].items())
    return (
        f"{options:<28}{point['accuracy']:7.1%}  ({low:.1%} to {high:.1%})   "
        f"{point['steps']:8.1f} steps   {flops_text(point['flops'])}"
    )
