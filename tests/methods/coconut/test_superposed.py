"""Superposed thoughts in the wrapper: what is fed back, what the loss is, what a trace tells."""

import io

import pytest
import torch
from rich.console import Console

import inward
from inward.data.thoughts.segments import Latent, Sample, Text
from inward.data.thoughts.superposed import Superposing, superposition
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from inward.viz.thoughts import show_thoughts
from tests.methods.coconut.toys import BASES, SPECIALS, VOCAB, distance, make_base

F = SPECIALS.latent
SPANS = (((3, 4, F), (5, 5, 5)), ((6, 3, F), (7, F, F), (F, F, F)), ((8, 9, 8),))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def model_with(kind: str = "gpt2", **settings) -> Coconut:
    settings = {"feedback": "mixture", "superpose": 0.5, "span": 3} | settings
    return Coconut(make_base(kind), SPECIALS, CoconutSettings(**settings)).eval()


def samples() -> list[Sample]:
    """Two blocks, one block, blocks of different lengths."""

    def text(*ids, said=False):
        return Text(ids, said)

    bot, eot = SPECIALS.bot, SPECIALS.eot
    first = (text(1, 2, bot), Latent(2, SPANS[0]), text(eot), text(11, 12, said=True))
    second = (text(4, bot), Latent(3, SPANS[1]), text(eot), text(13, said=True))
    more = (text(bot), Latent(1, SPANS[2]), text(eot), text(15, 16, said=True))
    return [Sample(first + more), Sample(second)]


@pytest.mark.parametrize("kind", BASES)
def test_the_mixture_is_fed_back_alike_by_every_executor(kind):
    model = model_with(kind)
    batch = model.collate(samples())
    output = model(batch, logits="all")
    rows, columns = batch["latent"].nonzero(as_tuple=True)
    said = output.logits[rows, columns - 1].softmax(-1)
    table = model.embedding(torch.arange(VOCAB))  # Huginn scales its embeddings
    assert distance(output.inputs_embeds[rows, columns], said @ table) < 1e-6
    loss = model.loss(batch).total
    assert distance(model(batch, executor="recompute").loss, output.loss) < 1e-6
    assert distance(model(batch, executor="jacobi").loss, output.loss) < 1e-6
    alone = sum(model.loss(model.collate([s])).total for s in samples())
    assert distance(loss, alone) < 1e-6
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_loss_is_the_divergence_from_what_thoughts_are_to_hold():
    model = model_with(superpose_weight=2.5)
    batch = model.collate(samples())
    output, how = model(batch, logits="all"), Superposing(3)
    with torch.no_grad():
        told, plain = model.loss(batch), model(batch).total
    want = 0.0
    for r, c in batch["latent"].nonzero().tolist():
        held = torch.from_numpy(superposition(batch["spans"][r, c - 1].tolist(), how, VOCAB))
        logp = output.logits[r, c - 1].detach().log_softmax(-1)
        want += float((held * (held.clamp(min=1e-300).log() - logp)).sum())
    assert float(told.metrics["superposed_loss"][0]) == pytest.approx(want, rel=1e-6)
    assert int(told.metrics["superposed_loss"][1]) == 6
    assert float(told.total) == pytest.approx(float(plain) + 2.5 * want, rel=1e-6)


def test_training_makes_thoughts_that_read_out_exactly_and_are_saved_and_served(tmp_path):
    torch.manual_seed(0)
    model = model_with("llama", superpose_weight=1.0).float().train()
    rows = samples()[:1]
    batch = model.collate(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch).total.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "m")
    again = Coconut.from_pretrained(tmp_path / "m").eval()
    assert again.settings == model.settings
    prompt = Sample((Text((1, 2, SPECIALS.bot), False), Latent(2), Text((SPECIALS.eot,), False)))
    made = generate(again, [prompt], trace=True, max_new_tokens=2)
    trace = made.traces[0]
    held = [step.view["words"].ids.tolist() for step in trace.steps if step.kind == "thought"]
    assert held == [[3, 4], [5, 5, 5]]
    weights = trace.steps[1].view["words"].confidence.tolist()
    assert weights == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=1 / 15)
    assert made.tokens[0] == [11, 12] and trace.meta["thought"] == "superposed"
    stepped = generate(again, [Sample((Text((1, 2), False),))], trace=True, thoughts=(2,),
                       max_new_tokens=4)  # fmt: skip
    held = [s.view["words"].ids.tolist() for s in stepped.traces[0].steps if s.kind == "thought"]
    assert held == [[3, 4], [5, 5, 5]]
    assert stepped.tokens[0][-2:] == [11, 12]
    trace.pieces = {i: f" w{i}" for i in range(VOCAB)}
    inward.page(trace, tmp_path / "page.html")
    assert "Exact read-out" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with Console(record=True, width=100, file=io.StringIO()) as console:
        show_thoughts(trace, console=console)
    assert "holds w5 0.5" in " ".join(console.export_text().split("thought 2")[1].split())


def test_soft_thoughts_with_the_same_feedback_and_no_such_loss_are_the_control():
    model = model_with(superpose=0.0, span=4)
    batch = model.collate(samples())
    with pytest.raises(ValueError, match="do not superpose"):
        model.loss(batch)
    del batch["spans"]
    assert "superposed_loss" not in model.loss(batch).metrics
    made = generate(model, [Sample((Text((1, 2), False),))], trace=True, thoughts=(2,),
                    max_new_tokens=4)  # fmt: skip
    assert all("words" not in step.view for step in made.traces[0].steps)
    assert made.traces[0].meta["thought"] == "soft"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"superpose": 0.6}, r"at most 0\.5"),
        ({"superpose": -0.1}, "above 0"),
        ({"span": 1}, "silent chain of thought"),
        ({"feedback": "none"}, "set feedback to 'mixture'"),
        ({"superpose_weight": 0.0}, "superpose_weight is 0.0"),
        ({"superpose": 0.0}, "span is 3, but superpose is 0"),
    ],
)
def test_settings_that_could_not_be_read_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model_with(**settings)


def test_a_batch_without_its_words_is_refused():
    model = model_with()
    batch = model.collate(samples())
    spans = batch.pop("spans")
    with pytest.raises(ValueError, match=r"has no spans.*span=3"):
        model.loss(batch)
    with pytest.raises(ValueError, match="shape"):
        model.loss({**batch, "spans": spans[..., :2]})
    with pytest.raises(ValueError, match="use one of the two"):
        model.collate(samples(), learned_stop=True)
