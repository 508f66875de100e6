"""What only a CUDA device can show: the same training as on the CPU, without a wait of the host, and its graphs."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from biglearn_vae.images import open_index, open_stream
from tests.trainer.engines.test_cuda_graphs import copy_of_state, cycles, micro_batches
from tests.trainer.engines.test_engine import ENGINES, RATES, batch, build
from trainer.build import build_task
from trainer.metrics.recorder import Metrics
from trainer.metrics.registry import MetricsConfig
from trainer.run_directory import RunDirectory

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda_world(world):
    """This process with its CUDA device, for the accelerate engine; alone it needs no group there."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield dataclasses.replace(world, device=torch.device("cuda", 0))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pair(tiny, cuda_world):
    """The plans, an engine with CUDA graphs and one without."""
    task, engine = build(tiny("engine.cuda_graphs=true"), cuda_world)
    _, other = build(tiny("engine.cuda_graphs=false"), cuda_world)
    assert engine.graphs
    assert not other.graphs
    return task.plans, engine, other


def assert_near(engine, other):
    """The same kernels in the same order."""
    state, expected = engine.full_state(*engine.kinds), other.full_state(*other.kinds)
    for kind, tensors in expected.items():
        for name, value in tensors.items():
            torch.testing.assert_close(state[kind][name], value, rtol=1e-6, atol=1e-6 * value.abs().max().item())


@pytest.mark.parametrize("mode", ["dense", "query_only"])
@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_losses_and_gradients_are_those_of_the_cpu(tiny, method, mode):
    gradients = []
    for device in ("cpu", "cuda"):
        task = build_task(tiny(f"method={method}", f"model.mask_tokens={mode}")).to(device)
        on_device = batch(0)
        on_device = type(on_device)(on_device.x_BLD.to(device), on_device.index_B.to(device))
        loss, _ = task(on_device, task.plans[0], beta=0.01)
        loss.backward()
        gradients.append([loss.detach().cpu(), *(p.grad.cpu() for p in task.parameters())])
    for cpu, cuda in zip(*gradients, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-3, atol=1e-3 * cpu.abs().max().item())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["accelerate", "deepspeed"])
def test_the_command_trains_on_the_gpu(root, tiny, tmp_path, digits_shards, engine, precision):
    command = [sys.executable, "launch/train.py", "--config", str(tiny.path), f"run_dir={tmp_path / 'run'}"]
    overrides = [f"engine.name={engine}", f"engine.precision={precision}", "engine.device=cuda"]
    command += [*overrides, f"data.shards={digits_shards}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/reports/summary.json").read_text())
    assert summary["after"]["biglearn_elbo"] > summary["before"]["biglearn_elbo"]


@pytest.mark.parametrize("memory_bytes", [2**31, 0])
def test_the_stream_reads_the_same(tiny, memory_bytes):
    config = tiny(f"data.memory_bytes={memory_bytes}")
    index, positions_B = open_index(config.data), torch.arange(1430, 1446)  # across the end of an epoch
    cpu, cuda = (
        open_stream(config.data, index, "train", config.seed, device).read(positions_B) for device in ("cpu", "cuda")
    )
    for name in ("x_BLD", "index_B", "label_B"):
        assert getattr(cuda, name).is_cuda
        torch.testing.assert_close(getattr(cuda, name).cpu(), getattr(cpu, name))


@pytest.mark.parametrize("memory_bytes", [2**31, 0])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_host_never_waits_for_a_step(tiny, cuda_world, cuda_graphs, memory_bytes):
    """Reading, the step and the record of its terms, some steps late."""
    config = tiny(f"engine.cuda_graphs={cuda_graphs}", f"data.memory_bytes={memory_bytes}")
    task, engine = build(config, cuda_world)
    stream = open_stream(config.data, open_index(config.data), "train", config.seed, cuda_world.device)
    lines = []
    metrics = Metrics(MetricsConfig(steps_late=2), 0, [lines.append])

    def steps(numbers):
        for n in numbers:
            terms = engine.step([stream.read(torch.arange(16) + 16 * n)], task.plans[n % 2], RATES)
            metrics.record_step(n + 1, 16 * (n + 1), terms)

    steps(range(4))  # a graph is recorded in the second step of its plan
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(range(4, 10))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics.flush()
    assert [line["step"] for line in lines] == list(range(1, 11))


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_with_graphs_are_those_without(pair, parts):
    plans, engine, other = pair
    made, expected = (cycles(each, plans, range(3 * len(plans)), parts) for each in (engine, other))
    assert [of_step["skipped"] for of_step in made] == [0] * len(made)
    for ours, theirs in zip(made, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert_near(engine, other)


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_compiled_steps_are_those_without(tiny, cuda_world, cuda_graphs, attention):
    how = [f"engine.cuda_graphs={cuda_graphs}", f"engine.attention={attention}", "model.num_heads=1"]
    made = []
    for compiled in (False, True):
        torch.compiler.reset()
        task, engine = build(tiny(*how, f"engine.compile={compiled}"), cuda_world)
        made.append(cycles(engine, task.plans[:2], range(6)))
    for theirs, ours in zip(*made, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_step_that_is_not_finite_is_skipped_in_a_replay(pair):
    plans, engine, other = pair
    for each in (engine, other):
        cycles(each, plans[:1], range(3))
    before = copy_of_state(engine)
    (bad,) = micro_batches(9, 1, engine.world.device)
    bad.x_BLD[0] = float("nan")
    assert engine.step([bad], plans[0], RATES)["skipped"].item() == 1
    for kind, tensors in engine.full_state(*engine.kinds).items():
        assert all(torch.equal(value, before[kind][name]) for name, value in tensors.items()), kind
    made, expected = (cycles(each, plans[:1], range(3, 6)) for each in (engine, other))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert_near(engine, other)


def test_a_run_goes_on_in_the_middle_of_its_graphs(pair):
    """Loaded into an engine that has recorded its own steps, the state of another gives that one's steps."""
    plans, engine, other = pair
    cycles(engine, plans[:2], range(5, 11))
    cycles(other, plans[:2], range(3))
    engine.load_full_state(copy_of_state(other), steps=3)
    made, expected = (cycles(each, plans[:2], range(3, 9)) for each in (engine, other))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert_near(engine, other)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize("engine", ["accelerate", "deepspeed 0", "deepspeed 1"])
def test_the_command_trains_with_graphs_while_threads_read_ahead(
    root, tiny, tmp_path, digits_shards, engine, precision, tolerance
):
    losses = []
    for cuda_graphs in (False, True):
        run = tmp_path / f"run-{cuda_graphs}"
        command = [sys.executable, "launch/train.py", "--config", str(tiny.path), f"run_dir={run}"]
        overrides = [f"engine.cuda_graphs={cuda_graphs}", f"engine.precision={precision}", "engine.device=cuda"]
        overrides += [
            *ENGINES[engine],
            "data.workers=2",
            "data.memory_bytes=0",
            "train.total_images=320",
            f"data.shards={digits_shards}",
        ]
        done = subprocess.run([*command, *overrides], cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert RunDirectory(run).record().ways["cuda_graphs"] is cuda_graphs
        assert "no CUDA graphs" not in done.stderr
        losses.append([json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
