"""EcoDiff: gates that can be cut out, masks learnt through the sampler, and how its claims are judged."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from papertrial.engine.evidence import Evidence  # noqa: E402
from papertrial.engine.verdicts import verdict  # noqa: E402
from papertrial.methods.noise_levels import grid  # noqa: E402
from papertrial.methods.samplers import ddim  # noqa: E402
from papertrial.models.arrays import seeded  # noqa: E402
from papertrial.models.edm import EDM  # noqa: E402
from papertrial.models.perceptrons import ResidualMLP  # noqa: E402
from papertrial.models.unet import ResidualBlock, UNet  # noqa: E402
from papertrial.papers.diffusion.ecodiff_pruning import evidence, learning  # noqa: E402
from papertrial.papers.diffusion.ecodiff_pruning.gates import (  # noqa: E402
    Gated,
    GatedConvolutions,
    WeightedGroupNorm,
    hard_concrete,
    open_probability,
    size,
    weakest,
)
from papertrial.papers.diffusion.ecodiff_pruning.learning import (  # noqa: E402
    Lessons,
    along,
    by_layer,
    checkpointed,
    end_to_end,
    learn,
    plain,
    step_wise,
    taylor,
)
from papertrial.papers.diffusion.ecodiff_pruning.memory import mask_gradient, saved_bytes  # noqa: E402
from papertrial.papers.diffusion.ecodiff_pruning.method import run  # noqa: E402

UNET = {"channels": (8, 16), "width": 16, "groups": 4, "middle": 2}


def stirred(net: nn.Module) -> EDM:
    """An untrained denoiser with all weights random, also those that begin at 0 or 1."""
    generator = torch.Generator().manual_seed(1000)
    for p in net.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return EDM(net, 0.6).eval()


@pytest.fixture(scope="module")
def convolutional():
    return seeded(lambda: stirred(UNet(**UNET)), 1000)


@pytest.fixture(scope="module")
def perceptron():
    return seeded(lambda: stirred(ResidualMLP(dim=64, width=16)), 1000)


def batch(n=6, dtype=torch.float32):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1000)).to(dtype)
    return x, torch.logspace(-1.5, 1, n).to(dtype), torch.arange(n) % 10


def some_closed(gated, seed, share=0.4):
    return np.random.default_rng(seed).random(len(gated.costs)) < share


def as_mask(closed, dtype=torch.float32):
    return torch.tensor(~closed)[None].to(dtype)


@pytest.mark.parametrize("kind", ["convolutional", "perceptron"])
def test_open_gates_change_nothing(kind, request):
    model = request.getfixturevalue(kind)
    gated, (x, s, label) = Gated(model), batch()
    with torch.no_grad():
        want = model(x, s, label)
        for rows in (1, len(x)):
            assert torch.allclose(gated(torch.ones(rows, len(gated.costs)), x, s, label), want, atol=1e-6)
        assert torch.allclose(gated.pruned(np.zeros(len(gated.costs), bool))(x, s, label), want, atol=1e-6)


def cases(gated):
    """Random gates; whole groups of a normalisation; all channels of a block; branches."""
    yield some_closed(gated, 1000)
    yield some_closed(gated, 1001, 0.7)
    whole = np.zeros(len(gated.costs), bool)
    whole[:5] = True  # of groups of two or more
    yield whole
    blocks = gated.split(np.arange(len(gated.costs)))
    channels = whole.copy()
    channels[blocks[1][: gated.blocks[1].channels]] = True
    yield channels
    if gated.blocks[0].branch:
        branch = some_closed(gated, 1002)
        branch[[blocks[0][-1], blocks[2][-1]]] = True
        yield branch


def test_removing_closed_channels_gives_the_masked_output(convolutional):
    gated, (x, s, label) = Gated(convolutional), batch()
    with torch.no_grad():
        for closed in cases(gated):
            masked, removed = gated(as_mask(closed), x, s, label), gated.pruned(closed)(x, s, label)
            assert torch.allclose(masked, removed, atol=1e-5)
            assert not torch.allclose(masked, convolutional(x, s, label), atol=1e-3)


def test_removing_closed_units_gives_the_masked_output(perceptron):
    gated, (x, s, label) = Gated(perceptron), batch()
    with torch.no_grad():
        for closed in (some_closed(gated, 1000), some_closed(gated, 1001, 0.9)):
            assert torch.allclose(gated(as_mask(closed), x, s, label), gated.pruned(closed)(x, s, label), atol=1e-5)


def test_what_is_left_of_a_group_is_normalised_by_itself():
    norm = nn.GroupNorm(4, 12).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    h = 3 + torch.randn(5, 12, 4, 4, dtype=torch.float64)
    kept = np.array([1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0], bool)
    want, done = [], 0
    for count in (3, 2, 1):
        rows = torch.tensor(np.flatnonzero(kept))[done : done + count]
        want.append(F.group_norm(h[:, rows], 1, norm.weight[rows], norm.bias[rows], norm.eps))
        done += count
    assert torch.allclose(WeightedGroupNorm(norm, kept)(h[:, kept]), torch.cat(want, 1), atol=1e-10)
    # with weights, in place: closed channels count for nothing, and a closed group is 0
    whole = WeightedGroupNorm(norm, np.ones(12, bool))
    scale, shift = whole.affine(h, torch.tensor(kept).double()[None])
    out = scale[..., None, None] * h + shift[..., None, None]
    assert torch.allclose(out[:, kept], torch.cat(want, 1), atol=1e-10)
    assert (out[:, 6:9] == 0).all()
    scale, shift = whole.affine(h, torch.ones(1, 12, dtype=torch.float64))
    assert torch.allclose(scale[..., None, None] * h + shift[..., None, None], norm(h), atol=1e-10)


def test_parameters_are_counted_as_they_are_removed(convolutional, perceptron):
    for model in (convolutional, perceptron):
        gated = Gated(model)
        for closed in cases(gated):
            assert size(gated.pruned(closed)) == gated.total - gated.removed(closed)
        one = np.eye(len(gated.costs), dtype=bool)
        assert [gated.removed(row) for row in one] == gated.costs.tolist()


def test_pruned_networks_have_the_stated_sparsity():
    """The full-size network: to half a per cent, whatever the scores; never by an overshooting branch."""
    model = EDM(UNet(), 0.626)
    gated = Gated(model)
    assert gated.total == 280_545
    for seed in range(1000, 1004):
        score = np.random.default_rng(seed).random(len(gated.costs))
        score[-65 if seed % 2 else 0] = -1.0
        for share in (0.1, 0.2):
            closed = weakest(score, gated, share)
            assert share <= 1 - size(gated.pruned(closed)) / size(model) <= share + 0.005
    branches = np.cumsum(gated.sizes) - 1
    score = np.ones(len(gated.costs))
    score[branches] = 0.0
    closed = weakest(score, gated, 0.2)
    assert not closed[branches[2:4]].any()  # each holds 29% of the parameters


def lesson(model, steps=3, n=4, dtype=torch.float32):
    sampler = along(grid("karras", steps - 1), ddim)
    found = Lessons.of(model, sampler, (1, 8, 8), 2, n, 1000)
    return sampler, Lessons(found.noise.to(dtype), found.label, found.target.to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_checkpointed_and_plain_gradients_agree(dtype, tolerance):
    model = seeded(lambda: stirred(UNet(**UNET)), 1000)
    gated = Gated(model)
    _, lessons = lesson(model, dtype=dtype)
    gated.model.to(dtype)
    u = torch.rand(4, len(gated.costs), generator=torch.Generator().manual_seed(1)).to(dtype).clamp(0.01, 0.99)
    gradient = [mask_gradient(gated, 3, lessons, how, 1.0, u) for how in (plain, checkpointed)]
    assert gradient[0].abs().max() > 1e-6
    assert (gradient[0] - gradient[1]).norm() <= tolerance * gradient[0].norm()


def test_gradient_is_that_of_finite_differences():
    model = seeded(lambda: stirred(UNet(**UNET)), 1000)
    gated = Gated(model)
    sampler, lessons = lesson(model, n=2, dtype=torch.float64)
    gated.model.double()
    loss, other = (end_to_end(gated, sampler, lessons, how) for how in (checkpointed, plain))
    mask = torch.rand(2, len(gated.costs), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaf = mask.clone().requires_grad_()
    loss(leaf, 0).backward()
    h = 1e-6
    for i in (0, len(gated.costs) // 2, len(gated.costs) - 1):
        step = torch.zeros_like(mask)
        step[0, i] = h
        with torch.no_grad():
            change = (other(mask + step, 0) - other(mask - step, 0)) / (2 * h)
        assert leaf.grad[0, i].item() == pytest.approx(change.item(), rel=1e-4, abs=1e-9)


def test_expected_l0_is_the_frequency_of_open_gates():
    log_alpha = torch.tensor([-4.0, -1.0, 0.0, 2.5])
    u = torch.rand(200_000, 4, generator=torch.Generator().manual_seed(1000))
    masks = hard_concrete(log_alpha, u)
    assert torch.allclose((masks > 0).float().mean(0), open_probability(log_alpha), atol=4e-3)
    assert (masks == 0).any() and (masks == 1).any() and ((masks >= 0) & (masks <= 1)).all()
    # by symmetry a gate at log-odds 0 is as often wholly open as wholly closed
    assert (masks[:, 2] == 1).float().mean().item() == pytest.approx(
        1 - open_probability(log_alpha)[2].item(), abs=4e-3
    )


def test_equal_noise_and_open_gates_have_no_loss(convolutional):
    gated = Gated(convolutional)
    sampler, lessons = lesson(convolutional)
    with torch.no_grad():
        loss = end_to_end(gated, sampler, lessons, plain)
        assert loss(torch.ones(4, len(gated.costs)), 0).item() < 1e-11
        assert loss(torch.ones(4, len(gated.costs)), 1).item() < 1e-11
        assert loss(as_mask(some_closed(gated, 1000)).expand(4, -1), 0).item() > 1e-4
        rolled = end_to_end(gated, sampler, lessons.rolled(), plain)  # the control has a loss even so
        assert rolled(torch.ones(4, len(gated.costs)), 0).item() > 1e-4
        draw = lambda n, g: (torch.randn(n, 1, 8, 8, generator=g), torch.arange(n) % 10)  # noqa: E731
        alone = step_wise(gated, convolutional, draw)
        assert alone(torch.ones(4, len(gated.costs)), 0, torch.Generator().manual_seed(1)).item() < 1e-7


def test_memory_is_that_of_one_step(convolutional):
    gated = Gated(convolutional)
    u = torch.full((4, len(gated.costs)), 0.4)
    found = {}
    for steps in (2, 4, 8):
        _, lessons = lesson(convolutional, steps)
        for how in (plain, checkpointed):
            found[how, steps] = saved_bytes(
                gated, lambda h=how, k=steps, q=lessons: mask_gradient(gated, k, q, h, 1.0, u)
            )
    peak = {key: value[0] for key, value in found.items()}
    each = (peak[plain, 8] - peak[plain, 4]) / 4  # of one evaluation
    assert (peak[plain, 4] - peak[plain, 2]) / 2 == pytest.approx(each, rel=1e-3)
    state = 4 * 64 * 4  # bytes of x: 4 pictures of 8 x 8
    assert peak[checkpointed, 8] - peak[checkpointed, 4] == pytest.approx(4 * state, abs=2 * state)
    assert each < peak[checkpointed, 8] < 1.2 * each + 8 * state


def test_saved_tensors_are_counted_once():
    """x * x keeps x twice; exp keeps its result."""
    x = torch.ones(1000, requires_grad=True)
    holder = SimpleNamespace(model=nn.Identity())
    assert saved_bytes(holder, lambda: (x * x).sum().backward())[0] == 4000
    assert saved_bytes(holder, lambda: (x * x).exp().sum().backward())[0] == 8000


def test_masks_keep_what_matters(convolutional):
    """With the L0 norm alone all gates close; with the distance alone they stay; costs pull in proportion."""
    gated = Gated(convolutional)
    p, device = {"start": 1.0, "lr": 0.2}, "cpu"
    nothing = lambda mask, step, generator: 0.0 * mask.sum()  # noqa: E731
    closed, _ = learn(gated, nothing, 2, 1.0, p, 20, 1000, device)
    assert (closed < -1).all()
    kept, losses = learn(gated, lambda m, k, g: (1 - m).square().mean(), 8, 0.0, p, 20, 1000, device)
    assert kept.mean() > 1.5 and losses[0]["seed"] == 1000


def test_taylor_is_the_first_order_change_of_the_loss(convolutional):
    """Of one sample: |dL/dm|, which for the branch is |L(1 + h) - L(1 - h)| / 2h."""
    gated = Gated(convolutional)
    draw = lambda n, g: (torch.randn(n, 1, 8, 8, generator=g), torch.arange(n) % 10)  # noqa: E731
    score = taylor(gated, draw, 1, {"log_mean": -1.0, "log_sd": 1.3}, 1, 1000, "cpu")
    loss = learning.denoising(draw, 1, -1.0, 1.3)
    at = np.cumsum(gated.sizes)[2] - 1
    values = []
    with torch.no_grad():
        for h in (1e-2, -1e-2):
            mask = torch.ones(1, len(score))
            mask[0, at] += h
            values.append(loss(gated.under(mask), None, 0, torch.Generator().manual_seed(1000)).item())
    assert score[at] == pytest.approx(abs(values[0] - values[1]) / 2e-2, rel=2e-2)
    assert by_layer(score, gated.layers)[gated.layers == 1].mean() == pytest.approx(1)


@pytest.mark.slow  # importing torch-pruning takes seconds
def test_baselines_are_the_peer_s():
    """torch-pruning ranks the channels of a block alike by magnitude, and its Taylor is ours without normalisation."""
    tp = pytest.importorskip("torch_pruning")

    class Branch(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.first, self.second = block.conv1, block.conv2

        def forward(self, x):
            return self.second(F.silu(self.first(x)))

    block = seeded(lambda: ResidualBlock(4, 8, 8, 2), 1000)
    branch, x = Branch(block), torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1000))
    with torch.no_grad():
        block.conv1.bias.zero_()
    graph = tp.DependencyGraph().build_dependency(branch, example_inputs=x)
    group = graph.get_pruning_group(branch.first, tp.prune_conv_out_channels, idxs=list(range(8)))
    theirs = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)(group).numpy()
    ours = GatedConvolutions(block).magnitudes()[:-1]
    assert np.allclose(np.square(ours) / np.square(ours).sum(), theirs / theirs.sum(), rtol=1e-4)
    branch(x).square().sum().backward()
    theirs = (block.conv2.weight * block.conv2.weight.grad).sum((0, 2, 3)).abs()
    mask = torch.ones(1, 8, 1, 1, requires_grad=True)
    block.conv2(F.silu(block.conv1(x)) * mask).square().sum().backward()
    assert torch.allclose(mask.grad.flatten().abs(), theirs, rtol=1e-4)


SIZES = {"n": 12, "images": 200, "batch": 4, "updates": 2, "tuning_updates": 1, "tuning_n": 6, "tuning_seed": 1100}
SIZES |= {"start": 2.0, "lr": 0.2, "betas": [0.1, 1.0], "log_mean": -1.0, "log_sd": 1.3, "at_once": 6, "share": 0.2}
SIZES |= {
    "finetune": 1,
    "finetune_batch": 8,
    "finetune_lr": 1e-3,
    "evaluations": 2,
    "heun_steps": 1,
    "measure": "pruned",
}
FM16 = {"name": "fm16", "model": "diffusion", **SIZES}
FM8 = {"name": "fm8", "model": "student", **SIZES, "intervals": 5, "distil_updates": 1, "distil_lr": 1e-3}
FM8["distil_batch"] = 8
MEMORY = {"name": "memory", "measure": "memory", "steps": [2, 4], "batch": 2, "start": 2.0, "repeats": 1}
TABLE = {
    "ecodiff": (FM16, "ecodiff", {"noises": [1000, 1001]}),
    "rolled": (FM16, "rolled", {"noises": [1000]}),
    "stepwise": (FM16, "stepwise", {"noises": [1000]}),
    "taylor": (FM16, "taylor", {"noises": [1000]}),
    "random": (FM16, "random", {"noises": [1000]}),
    "full": (FM16, "full", {"noises": [1000]}),
    "student": (FM8, "ecodiff", {"noises": [1000]}),
    "student, magnitude": (FM8, "magnitude", {"noises": [1000]}),
    "memory": (MEMORY, "ecodiff", {}),
}


@pytest.fixture(scope="module")
def tiny(tiny_fm8, tiny_fm16):
    from papertrial.engine.results import Inputs

    return Inputs(tiny_fm16.datasets, {**tiny_fm8.models, **tiny_fm16.models})


SLOW = ("rolled", "stepwise", "random", "full", "student, magnitude")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in TABLE])
def test_splitting_the_seeds_changes_nothing(case, tiny):
    rows = run(*TABLE[case], [1000, 1001], tiny, "cpu").rows
    parts = [run(*TABLE[case], [seed], tiny, "cpu").rows for seed in (1000, 1001)]
    whole, split = (pd.DataFrame(r) for r in (rows, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)
    assert not whole.duplicated(["seed", "noise", "steps"]).any()
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_the_option_with_the_smallest_rms_is_taken(tiny):
    from papertrial.papers.diffusion.ecodiff_pruning.method import Same, remembered

    found = run(*TABLE["ecodiff"], [1000], tiny, "cpu")
    tried = pd.DataFrame(found.traces).dropna(subset=["tuning_rms"])
    assert list(tried["option"]) == ["0.1", "1.0"] and set(tried["seed"]) == {1100}
    bench = remembered(Same(tiny), json.dumps(FM16, sort_keys=True), 0, "cpu")
    best, trials = bench.option("ecodiff")
    assert dict(trials)[best] == min(rms for _, rms in trials)


# Judging.


def table(fd, rms=None, noises=(0, 1, 2), problem="fm16"):
    """Rows from {method: value}, with a little noise that all methods share and a little that they don't."""
    rows = []
    for m, (method, value) in enumerate(fd.items()):
        for seed in range(3):
            for noise in (0,) if problem == "fm8" or method in ("stepwise", "rolled") else noises:
                row = {"problem": problem, "method": method, "seed": seed, "noise": noise, "steps": 8}
                rows.append({**row, "fd": value + 0.1 * noise + 0.01 * m * seed, "rms": (rms or fd)[method]})
    return pd.DataFrame(rows)


def test_c1_is_judged_as_the_card_says():
    fd = {"ecodiff": 4.0, "taylor": 5.0, "magnitude": 90.0, "random": 50.0, "full": 2.0, "rolled": 30.0}
    judge = lambda **change: verdict(evidence.little_loss_of_quality(Evidence(table({**fd, **change}))))  # noqa: E731
    assert judge() == "replicated"
    assert judge(taylor=3.0) == "not replicated" and judge(magnitude=3.0) == "not replicated"
    assert judge(random=9.0) == "not replicated"  # a loss of 2 is more than a quarter of 7
    control = Evidence(table(fd)).standing_in("rolled", "ecodiff")
    criteria = evidence.little_loss_of_quality(control)
    assert verdict(criteria) == "not replicated" and criteria[0].n == 3
    assert [c.n for c in evidence.little_loss_of_quality(Evidence(table(fd)))] == [9, 9, 9]


def test_c2_is_judged_as_the_card_says():
    c2 = evidence.the_whole_process_counts
    judge = lambda fd, rms: verdict(c2(Evidence(table(fd, rms))))  # noqa: E731
    worse, better = {"ecodiff": 1.0, "stepwise": 2.0}, {"ecodiff": 2.0, "stepwise": 1.0}
    assert judge(worse, worse) == "replicated"
    assert judge(better, worse) == "not replicated" and judge(worse, better) == "not replicated"


def c3_table(plain=1.0, checkpointed=0.1, time=1.5, apart=0.0):
    steps = (2, 4, 8, 16)
    rows = [
        {"seed": s, "steps": t, "bytes_plain": 1e6 * t**plain, "bytes_checkpointed": 1e6 * t**checkpointed}
        | {"gradient_difference": apart}
        for s in range(3)
        for t in steps
    ]
    timings = [
        {"seed": s, "steps": t, "plain": 1.0, "checkpointed": time if t == 8 else 9.0} for s in range(3) for t in steps
    ]
    name = {"problem": "memory", "method": "ecodiff"}
    return Evidence(pd.DataFrame(rows).assign(**name), timings=pd.DataFrame(timings).assign(**name))


def test_c3_is_judged_as_the_card_says():
    judge = lambda **change: verdict(evidence.small_memory(c3_table(**change)))  # noqa: E731
    assert judge() == "replicated"
    assert [c.estimate for c in evidence.small_memory(c3_table())][:2] == pytest.approx([1.0, 0.1])
    assert judge(plain=0.8) == "not replicated" and judge(checkpointed=0.5) == "not replicated"
    assert judge(checkpointed=0.45) == "not replicated" and judge(time=2.3) == "not replicated"
    assert judge(apart=2e-4) == "not replicated"


def test_c4_is_judged_as_the_card_says():
    judge = lambda **fd: verdict(evidence.distilled_models_too(Evidence(table(fd, problem="fm8"))))  # noqa: E731
    assert judge(ecodiff=1.0, magnitude=2.0) == "replicated"
    assert judge(ecodiff=2.0, magnitude=1.0) == "not replicated"
