"""What is chosen where the configuration leaves it open."""

import pytest
import torch

import trainer.choices
from data.errors import UserError
from trainer.build import meta_task
from trainer.choices import choose, ways_of
from trainer.config import load_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL, LARGE = 10_000, 10**14  # parameters


@pytest.fixture
def has_all(monkeypatch):
    """A machine with Triton and a compiler."""
    monkeypatch.setattr(trainer.choices, "find_spec", lambda name: name)
    monkeypatch.setattr(trainer.choices.shutil, "which", lambda name: name)


def ways(config, device, parameters=SMALL) -> list:
    engine = choose(config, device, parameters).engine
    return [engine.attention, engine.cuda_graphs, engine.compile]


def test_a_cpu_makes_plain_steps(tiny, has_all):
    assert ways(tiny(), CPU, LARGE) == ["sdpa", False, False]
    assert ways(tiny("engine.cuda_graphs=true"), CPU) == ["sdpa", False, False]  # idle there
    assert ways_of(choose(tiny(), CPU, SMALL), CPU) == {
        "device": "cpu",
        "attention": "sdpa",
        "cuda_graphs": False,
        "compile": False,
    }


def test_a_gpu_takes_the_fast_ways(tiny, has_all):
    fits = ("model.embed_dim=32", "model.num_heads=2")
    assert ways(tiny(*fits), CUDA) == ["triton", True, False]
    assert ways(tiny(*fits), CUDA, LARGE) == ["triton", True, True]  # long enough for a minute of compiling
    assert ways(tiny(*fits, "engine.attention=sdpa", "engine.cuda_graphs=false"), CUDA) == ["sdpa", False, False]
    assert ways(tiny(*fits, "engine.compile=true"), CUDA) == ["triton", True, True]


def test_the_kernel_serves_any_number_of_patches(tiny, has_all):
    config = tiny("data.patch_size=2")
    assert (config.data.patches, *ways(config, CUDA)) == (256, "triton", True, False)


@pytest.mark.parametrize("misfit", ["model.embed_dim=24", "model.mask_tokens=dense"], ids=["width", "dense"])
def test_what_the_kernel_cannot_serve_is_served_by_sdpa_or_refused(tiny, has_all, misfit):
    assert ways(tiny("model.embed_dim=32", misfit), CUDA)[0] == "sdpa"
    with pytest.raises(UserError, match=r"engine.attention=triton .*: set engine.attention=auto or sdpa"):
        tiny("model.embed_dim=32", misfit, "engine.attention=triton")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, [True, True]), (1, [True, True]), (2, [False, True]), (3, [False, False])],
)
def test_what_goes_with_a_stage(tiny, has_all, stage, expected):
    config = tiny("engine.name=deepspeed", f"engine.zero_stage={stage}")
    assert ways(config, CUDA, LARGE)[1:] == expected


def test_without_triton_and_compiler_a_gpu_goes_on(tiny, monkeypatch):
    monkeypatch.setattr(trainer.choices, "find_spec", lambda name: None)
    monkeypatch.setattr(trainer.choices.shutil, "which", lambda name: None)
    assert ways(tiny("model.embed_dim=32"), CUDA, LARGE) == ["sdpa", True, False]
    with pytest.raises(UserError, match="install one .* or set engine.compile=auto"):
        choose(tiny("engine.compile=true"), CUDA, SMALL)


def test_the_flagship_takes_every_fast_way(has_all):
    config = load_config("configs/celeba_base.yaml")
    assert config.engine.name == "deepspeed"
    assert ways(config, CUDA, parameters=94_311_168) == ["triton", True, True]


def test_the_large_configurations_are_as_large_as_they_say_and_fast(has_all):
    expected = {"celeba_256": (94_311_168, [True, True]), "celeba_1b": (1_054_569_472, [False, True])}
    for name, (parameters, others) in expected.items():
        config = load_config(f"configs/{name}.yaml")
        assert sum(p.numel() for p in meta_task(config).parameters()) == parameters
        assert ways(config, CUDA, parameters) == ["triton", *others]
