"""What lm-eval takes a model for. Its class is made when lm-eval is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inward.evals.harness import Judge


def harness_model(judge: Judge) -> Any:
    """A judge as lm-eval's model."""
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    return type("InwardLM", (JudgedLM, TemplateLM), {})(judge)


class JudgedLM:
    """The methods that lm-eval calls, before its own in the order of classes; see
    `inward.evals.harness`."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge
        self.thinks = judge.thinker.method.name == "coconut"

    @property
    def eot_token_id(self) -> int:
        """What a text without context begins with."""
        tokenizer: Any = self.judge.tokenizer
        found = tokenizer.bos_token_id
        found = tokenizer.eos_token_id if found is None else found
        if found is None:
            raise ValueError("the tokenizer has neither a beginning nor an end token")
        return int(found)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """With the tokens that the tokenizer puts before a text, unless said otherwise."""
        tokenizer: Any = self.judge.tokenizer
        given = True if add_special_tokens is None else add_special_tokens
        return tokenizer.encode(string, add_special_tokens=given)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """See the top of `inward.evals.harness`."""
        if not self.thinks:
            # lm-eval's: it cuts the pairs into tokens, and calls `_loglikelihood_tokens`
            return super().loglikelihood(requests, disable_tqdm=True)  # pyright: ignore
        self._check_thinking()
        return self.judge.likelihoods([request.args for request in requests])

    def _check_thinking(self) -> None:
        thinker = self.judge.thinker
        switch = thinker.ask_as.get("switch", {}).get("name", "boundary")
        if switch != "speak" or {"thoughts", "switch"} & set(self.judge.options):
            raise ValueError(
                f"{thinker.name or 'this model'} decides between words whether it thinks "
                f"(switch {switch!r}), so a continuation that is given has no probability; use "
                "tasks that generate (output_type: generate_until)"
            )

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return self.judge.judge([(context, said) for _, context, said in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows as long as the context."""
        if self.thinks:
            raise ValueError(
                "a Coconut model thinks after a question, and a text alone has none: its rolling "
                "log-likelihood is not defined"
            )
        from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
            get_rolling_token_windows,
            make_disjoint_window,
        )

        sums = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.eot_token_id,
                max_seq_len=self.judge.context - 1,
                context_len=1,
            )
            parts = self.judge.judge([make_disjoint_window(window) for window in windows])
            sums.append(sum(chance for chance, _ in parts))
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model answers."""
        return self.judge.answers([request.args for request in requests])
