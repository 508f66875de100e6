"""What only a CUDA device can show: the same training as on the CPU."""

import json
import subprocess
import sys

import pytest
import torch

from tests.trainer.test_engine import batch
from trainer.build import build_task

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", ["dense", "query_only"])
@pytest.mark.parametrize("method", ["vae", "biglearn_t", "biglearn_u"])
def test_losses_and_gradients_are_those_of_the_cpu(tiny, method, mode):
    gradients = []
    for device in ("cpu", "cuda"):
        task = build_task(tiny(f"method={method}", f"model.mask_tokens={mode}")).to(device)
        on_device = batch(0)
        on_device = type(on_device)(on_device.x_BLD.to(device), on_device.index_B.to(device))
        loss, _ = task(on_device, task.plans[0])
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
