import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inward.data.thoughts.segments import Latent, Sample
from inward.methods.coconut.alarms import CollapseWarning, collapsed, geometry
from inward.methods.coconut.feedback import MatchNorm, Projector, embedding_rms, feedback_module
from inward.methods.coconut.losses import (
    distillation_loss,
    step_decoder_loss,
    with_steps,
    with_teacher,
)
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from tests.methods.coconut.toys import (
    BASES,
    SPECIALS,
    bot,
    distance,
    eot,
    interleaved,
    make_base,
    ragged,
    text,
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def model_with(kind: str = "gpt2", *, decoder=None, **settings) -> Coconut:
    return Coconut(make_base(kind), SPECIALS, CoconutSettings(**settings), decoder=decoder).eval()


# --- stabilisers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("feedback", ["norm", "projector", "adapter"])
def test_stabilised_thoughts_are_fed_back(kind, feedback):
    model = model_with(kind, feedback=feedback, feedback_width=8)
    batch = model.collate(ragged())
    output = model(batch)
    rows, columns = batch["latent"].nonzero(as_tuple=True)
    fed, before = output.inputs_embeds[rows, columns], output.hidden[rows, columns - 1]
    assert distance(fed, model.feedback(before)) < 1e-9
    assert distance(fed, before) > 1e-2
    assert distance(output.loss, model(batch, executor="recompute").loss) < 1e-8
    output.loss.backward()
    for name, parameter in model.feedback.named_parameters():
        if not (feedback == "adapter" and name.startswith("inner")):  # behind W2 = 0 at the start
            assert parameter.grad.abs().max() > 0, name


def test_norm_and_adapter_give_the_embeddings_size():
    model = model_with("huginn", feedback="norm")  # its embedding scales its rows
    h = 7.0 * torch.randn(5, 16)
    want = model.embedding(torch.arange(40)).square().mean().sqrt()
    sizes = model.feedback(h).square().mean(-1).sqrt()
    torch.testing.assert_close(sizes, want.expand(5).float(), rtol=1e-5, atol=0)
    assert distance(embedding_rms(model.embedding), want.float()) < 1e-6
    adapter: Any = feedback_module(CoconutSettings(feedback="adapter"), model.embedding)
    assert distance(adapter(h.double()), model.feedback(h)) < 1e-5, "it must start as the norm"
    with torch.no_grad():
        adapter.outer.weight.normal_()
    sizes = adapter(h.double()).square().mean(-1).sqrt()
    torch.testing.assert_close(sizes, want.expand(5), rtol=1e-5, atol=0)


def test_projectors_are_codis_and_start_from_a_seed():
    embedding: Any = make_base("gpt2").get_input_embeddings()
    settings = CoconutSettings(feedback="projector", feedback_width=8, seed=5)
    one, two = feedback_module(settings, embedding), feedback_module(settings, embedding)
    assert isinstance(one, Projector)
    h = torch.randn(3, 16, dtype=torch.float64)
    assert torch.equal(one(h), two(h))
    by_hand = F.layer_norm(
        F.gelu(h @ one.inner.weight.T + one.inner.bias) @ one.outer.weight.T, (16,)
    )
    assert distance(one(h), by_hand) < 1e-9
    assert isinstance(feedback_module(CoconutSettings(), embedding), torch.nn.Identity)
    assert isinstance(feedback_module(CoconutSettings(feedback="norm"), embedding), MatchNorm)


# --- extra losses ---------------------------------------------------------------------------------


def test_the_distillation_loss_is_codis():
    student = [torch.tensor([[0.0, 2.0]], requires_grad=True)]
    teacher = [torch.tensor([[0.5, -1.0]], requires_grad=True)]
    # smooth L1: 0.5 * 0.25 and 3 - 0.5; mean 1.3125; deviation of the teacher 1.5 / sqrt(2)
    loss = distillation_loss(student, teacher)
    assert loss.tolist() == pytest.approx([1.3125 / (1.5 / math.sqrt(2))])
    loss.sum().backward()
    assert student[0].grad is not None and teacher[0].grad is None
    assert distillation_loss(student * 2, teacher * 2).item() == pytest.approx(loss.item())


def spoken(seed: int) -> Sample:
    return Sample((text(4, seed), text(6, seed + 1, supervised=True)))


def silent(seed: int, num: int = 3) -> Sample:
    segments = (text(4, seed), bot(), Latent(num), eot(), text(2, 0, supervised=True))
    return Sample(segments)


def test_distillation_aligns_the_anchors():
    model = model_with(distill=0.5)
    students, teachers = [silent(1), silent(2, 1)], [spoken(1), spoken(2)]
    own, other = model.collate(students), model.collate(teachers)
    anchors, teacher_anchors = torch.tensor([8, 6]), torch.tensor([7, 7])
    batch = with_teacher(own, other, anchors, teacher_anchors)
    loss = model.loss(batch)
    a, b = model(own, layers=True), model(other, layers=True)
    columns = [int((own["position_ids"][r] == p).nonzero()[-1]) for r, p in enumerate(anchors)]
    gap = distillation_loss(
        [layer[[0, 1], columns] for layer in a.layers],
        [layer[[0, 1], [7, 7]] for layer in b.layers],
    )
    want = a.row_loss / a.row_count + b.row_loss / b.row_count + 0.5 * gap
    assert distance(loss.total, want.sum()) < 1e-9
    assert batch["weight"].tolist() == [1, 1]
    assert distance(loss.metrics["distill_loss"][0], gap.sum()) < 1e-9
    assert loss.metrics["token_loss"][1] == own["weight"].sum()
    loss.total.backward()
    with pytest.raises(ValueError, match="do not all lie within their rows"):
        with_teacher(own, other, torch.tensor([8, 90]), teacher_anchors)


def test_steps_go_to_groups():
    batch = {"weight": torch.tensor([3, 3, 3])}
    steps = [[[1, 2], [3], [4, 5]], [[6]], [[7], [8, 9]]]
    out = with_steps(batch, steps, [[10], [11], [12]], num_groups=2)
    assert out["steps"].tolist() == [
        [[1, 2, -100], [3, 4, 5]],
        [[6, -100, -100], [11, -100, -100]],
        [[7, -100, -100], [8, 9, -100]],
    ]
    assert out["weight"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="1 rows of steps"):
        with_steps(batch, steps[:1], [[1]], num_groups=2)


def test_the_step_decoder_reads_thoughts_as_a_prefix():
    """Group by group, by hand, without padding."""
    decoder = make_base("llama")
    thoughts = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    steps = torch.tensor([[[1, 2, 3], [4, -100, -100]], [[5, 6, -100], [7, 8, 9]]])
    got = step_decoder_loss(decoder, thoughts, steps, c=2)
    want = []
    for r in range(2):
        total = torch.tensor(0.0, dtype=torch.float64)
        for g in range(2):
            ids = [i for i in steps[r, g].tolist() if i >= 0]
            words = decoder.get_input_embeddings()(torch.tensor(ids))
            inputs = torch.cat([thoughts[r, 2 * g : 2 * g + 2], words])[None]
            logits = decoder(inputs_embeds=inputs).logits[0, 1:-1]
            total = total + F.cross_entropy(logits, torch.tensor(ids), reduction="sum")
        want.append(total / 2)
    assert distance(got, torch.stack(want)) < 1e-5
    got.sum().backward()
    assert thoughts.grad[:, :4].abs().min() > 0 and (thoughts.grad[:, 4] == 0).all()
    with pytest.raises(ValueError, match="2 groups of 3 thoughts need 6, the batch has 5"):
        step_decoder_loss(decoder, thoughts, steps, c=3)


def test_step_decoding_joins_the_loss():
    decoder = make_base("llama")
    model = model_with(decoder=decoder, step_decoder=2.0, thoughts_per_step=1)
    own = model.collate([silent(1, 2), silent(2, 3)])
    batch = with_steps(own, [[[1, 2], [3]], [[4], [5, 6], [7]]], [[8], [9]], num_groups=2)
    loss = model.loss(batch)
    output = model(own)
    spelled = step_decoder_loss(decoder, output.thoughts()[0], batch["steps"], 1)
    want = output.row_loss / output.row_count + 2.0 * spelled
    assert distance(loss.total, want.sum()) < 1e-9
    loss.total.backward()
    assert decoder.get_input_embeddings().weight.grad is not None


def test_losses_that_lack_their_data_say_so():
    with pytest.raises(ValueError, match="no decoder was given"):
        model_with(step_decoder=1.0)
    model = model_with(distill=1.0)
    with pytest.raises(ValueError, match=r"lacks \['anchor'\].*with_teacher"):
        model.loss(model.collate(ragged()))
    wrong: tuple[dict[str, Any], ...] = (
        {"feedback": "loud"},
        {"distill": -1.0},
        {"feedback_width": 0},
    )
    for bad in wrong:
        with pytest.raises(ValueError, match=next(iter(bad))):
            CoconutSettings(**bad)


# --- alarms ---------------------------------------------------------------------------------------


def test_geometry_of_known_thoughts():
    table = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])  # mean 0, length 3
    thoughts = torch.tensor(
        [[[6.0, 0.0], [0.0, 6.0], [9.9, 9.9]], [[6.0, 0.0], [6.0, 0.0], [0, 0]]]
    )
    there = torch.tensor([[True, True, False], [True, True, False]])
    where = geometry(thoughts, there, table)
    assert where["norm"] == pytest.approx(2.0)
    assert where["center"] == pytest.approx(6.0)
    assert where["distance"] == pytest.approx(math.sqrt(72) / 2)  # one pair apart, one pair equal
    assert where["cosine"] == pytest.approx(0.5)
    assert where["rank"] == pytest.approx(1.0, abs=1e-4), "(6, 0) and (0, 6) lie on a line"
    square = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    assert geometry(square, torch.ones(1, 4, dtype=torch.bool), table)["rank"] == pytest.approx(2.0)
    assert geometry(thoughts, torch.zeros_like(there), table) == {}


def test_alarms_tell_what_is_wrong():
    assert collapsed({}) == []
    assert collapsed({"cosine": 0.5, "rank": 7.0, "norm": 3.0, "distance": 1.0}) == []
    assert "alike" in collapsed({"cosine": 0.999})[0]
    assert "on a line" in collapsed({"rank": 1.0})[0]
    assert "1e+04 times" in collapsed({"norm": 1e4})[0]


def test_alarms_are_metrics_and_warn():
    model = model_with(alarms=True)
    metrics = model.loss(model.collate(ragged())).metrics
    assert {"thought_norm", "thought_cosine", "thought_rank"} <= set(metrics)
    none = model.loss(model.collate([interleaved(seed=1)])).metrics
    assert metrics.keys() == none.keys()
    assert none["thought_norm"][1] == 0 and metrics["thought_norm"][1] == 1
    model.feedback = torch.nn.Linear(16, 16).double()
    with torch.no_grad():
        model.feedback.weight.zero_()
    with pytest.warns(CollapseWarning, match="alike"):
        model.loss(model.collate([interleaved(3, seed=1)]))
