"""The optimizers: which parameters follow which rule, the rules against plain formulas, the average."""

import pytest
import torch
from torch import nn

from trainer.engines.optimizers import muon
from trainer.engines.optimizers.config import MuonConfig, OptimizerConfig
from trainer.engines.optimizers.muon import newton_schulz, orthogonalise
from trainer.engines.optimizers.optimizer import Optimizer

FP32 = torch.float32


class Layers(nn.Module):
    """Two matrices in one weight, a wide and a tall one, and parameters that are none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.pair, self.wide, self.tall = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 9)
        self.head = nn.Linear(9, 3)

    def matrices(self):
        return {"pair.weight": (2, 4, 6), "wide.weight": (1, 5, 8), "tall.weight": (1, 9, 5)}

    def forward(self, x_BD):
        return self.head(self.tall(self.wide(self.pair(x_BD)).tanh()))


def made(config: OptimizerConfig, capturable: bool = False) -> tuple[Layers, Optimizer]:
    module = Layers()
    optimizer = Optimizer(module, config, FP32, capturable=capturable)
    optimizer.create_state()
    return module, optimizer


def train(optimizer, module, steps, set_rates):
    """The parameters after each step."""
    torch.manual_seed(0)
    for step in range(steps):
        set_rates(step)
        optimizer.zero_grad()
        module(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        yield [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.95)])
def test_adamw_is_torchs_with_decay_on_matrices_alone(betas):
    config = OptimizerConfig(name="adamw", learning_rate=0.02, weight_decay=0.1, beta1=betas[0], beta2=betas[1])
    (ours, optimizer), theirs = made(config), Layers()
    matrices, others = [p for p in theirs.parameters() if p.ndim == 2], [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=betas, eps=1e-8)
    our_steps = list(train(optimizer, ours, 5, lambda step: optimizer.set_rates(0.5, 0.5)))
    for mine, others in zip(our_steps, train(reference, theirs, 5, lambda step: None), strict=True):
        torch.testing.assert_close(mine, others)


def test_muon_moves_the_matrices_of_the_task_and_adamw_all_else():
    """Against the formula: Nesterov momentum, made orthogonal, times sqrt(max(1, rows / columns))."""
    config = OptimizerConfig(learning_rate=0.01, muon=MuonConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.2))
    (ours, optimizer), theirs = made(config), Layers()
    named = dict(theirs.named_parameters())
    others = {name: p for name, p in named.items() if name not in theirs.matrices()}
    groups = [{"params": [named["head.weight"]], "weight_decay": 0.01}]
    groups += [{"params": [p for name, p in others.items() if p.ndim < 2], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.005, betas=(0.9, 0.95), eps=1e-8)
    momenta = {name: torch.zeros_like(named[name]) for name in theirs.matrices()}
    torch.manual_seed(0)
    inputs = [torch.randn(8, 6) for _ in range(4)]
    torch.manual_seed(0)
    our_steps = list(train(optimizer, ours, 4, lambda step: optimizer.set_rates(0.5, 0.5)))
    for mine, x_BD in zip(our_steps, inputs, strict=True):
        theirs.zero_grad()
        theirs(x_BD).square().sum().backward()
        reference.step()
        for name, (count, rows, columns) in theirs.matrices().items():
            p = named[name]
            momenta[name] = 0.9 * momenta[name] + 0.1 * p.grad
            direction = 0.1 * p.grad + 0.9 * momenta[name]
            parts = [newton_schulz(part[None])[0] for part in direction.view(count, rows, columns)]
            update = torch.cat(parts) * max(1, rows / columns) ** 0.5
            p.data = p.data * (1 - 0.05 * 0.2) - 0.05 * update
        torch.testing.assert_close(mine, [*theirs.parameters()], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (30, 10), (8, 40), (64, 10)])
def test_newton_schulz_gives_the_directions_of_the_singular_vectors(shape):
    """U Vᵀ with singular values in the band of the iteration; those of the smallest directions may lie below it."""
    torch.manual_seed(0)
    g_NRC = torch.randn(5, *shape) * torch.tensor([1e-3, 1, 10, 1e4, 1])[:, None, None]
    for found_RC, g_RC in zip(newton_schulz(g_NRC), g_NRC, strict=True):
        u_RK, s_K, vh_KC = torch.linalg.svd(g_RC, full_matrices=False)
        in_its_basis_KK = u_RK.T @ found_RC @ vh_KC.T
        values_K = in_its_basis_KK.diagonal()
        large = s_K > 0.02 * s_K.square().sum().sqrt()
        assert (values_K[large] > 0.6).all()
        assert (values_K < 1.25).all()
        assert (in_its_basis_KK - values_K.diag()).abs().max() < 1e-3


def test_a_batch_of_matrices_is_each_alone_in_its_place():
    torch.manual_seed(0)
    wholes = [torch.randn(2, 4, 6), torch.randn(1, 9, 5), torch.randn(3, 4, 6)]
    for whole, found in zip(wholes, orthogonalise(wholes), strict=True):
        scale = max(1, whole.shape[1] / whole.shape[2]) ** 0.5
        torch.testing.assert_close(found, torch.cat([newton_schulz(one[None]) for one in whole]) * scale)
    assert not orthogonalise([torch.zeros(1, 4, 4)])[0].any()  # a layer without a gradient stays


def test_the_kinds_of_state_are_those_of_the_rules():
    _, muon = made(OptimizerConfig())
    _, adamw = made(OptimizerConfig(name="adamw"))
    everything = {name for name, _ in Layers().named_parameters()}
    assert {kind: {*names} for kind, names in adamw.kinds.items()} == dict.fromkeys(
        ("exp_avg", "exp_avg_sq", "ema"), everything
    )
    assert {*muon.kinds["exp_avg_sq"]} == everything - Layers().matrices().keys()
    assert {*muon.kinds["exp_avg"]} == {*muon.kinds["ema"]} == everything
    for group in muon.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            assert muon.state[p].keys() - {"step"} == {kind for kind, names in muon.kinds.items() if name in names}


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_skipped_step_leaves_everything_bit_for_bit(name, value):
    module, optimizer = made(OptimizerConfig(name=name))
    list(train(optimizer, module, 2, lambda step: optimizer.set_rates(1.0, 0.5)))
    before = [p.detach().clone() for p in module.parameters()]
    state = {p: {k: v.clone() for k, v in of_p.items()} for p, of_p in optimizer.state.items()}
    for p in module.parameters():
        p.grad.view(-1)[0] = value
    optimizer.skip_if(torch.tensor(1.0))
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(value, state[p][k]) for p, of_p in optimizer.state.items() for k, value in of_p.items())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_average_is_the_recursion(name):
    module, optimizer = made(OptimizerConfig(name=name))
    expected, decays = module.wide.weight.detach().clone(), [0.3, 0.5, 0.9]
    position = [n for n, _ in module.named_parameters()].index("wide.weight")
    for step, weights in enumerate(train(optimizer, module, 3, lambda s: optimizer.set_rates(1.0, decays[s]))):
        expected = decays[step] * expected + (1 - decays[step]) * weights[position]
        torch.testing.assert_close(optimizer.state[module.wide.weight]["ema"], expected)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_rates_that_a_graph_reads_stay_where_they_are(name):
    """As tensors, which alone a recorded step sees change; to the rounding of the rate they give the same steps."""
    rates = [(1.0, 0.3), (0.2, 0.9), (0.5, 0.6)]

    def steps_of(capturable):
        module, optimizer = made(OptimizerConfig(name=name, learning_rate=0.1), capturable)
        before = [(group["lr"], group["ema_share"]) for group in optimizer.param_groups]
        steps = list(train(optimizer, module, 3, lambda step: optimizer.set_rates(*rates[step])))
        if capturable:
            for tensors, group in zip(before, optimizer.param_groups, strict=True):
                assert group["lr"] is tensors[0]
                assert group["ema_share"] is tensors[1]
                assert tensors[0].item() == pytest.approx(0.5 * group["rule"].learning_rate)
                assert tensors[1].item() == pytest.approx(0.4)
        return [*steps, [optimizer.state[p]["ema"] for p in module.parameters()]]

    torch.testing.assert_close(steps_of(True), steps_of(False))


def test_ranks_exchange_contiguous_matrices(monkeypatch):
    """NCCL takes nothing else; a tall matrix is computed as its transpose."""
    exchanged = []
    monkeypatch.setattr(muon.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(muon.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(muon.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(muon.dist, "all_gather_into_tensor", lambda out, mine: exchanged.append(mine))
    orthogonalise([torch.randn(3, 8, 4)])
    assert [mine.shape for mine in exchanged] == [(2, 8, 4)]
    assert all(mine.is_contiguous() for mine in exchanged)


def test_where_most_ranks_make_none_their_zeros_are_summed(monkeypatch):
    """Five ranks, two matrices: a gathered share of each would be five of them."""
    g_NRC, parts = torch.randn(2, 8, 4), []
    monkeypatch.setattr(muon.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(muon.dist, "get_world_size", lambda: 5)
    monkeypatch.setattr(muon.dist, "all_reduce", lambda made: parts.append(made.clone()))
    for rank in range(5):
        monkeypatch.setattr(muon.dist, "get_rank", lambda rank=rank: rank)
        orthogonalise([g_NRC])
    assert all(part.is_contiguous() for part in parts)
    torch.testing.assert_close(sum(parts), newton_schulz(g_NRC))
