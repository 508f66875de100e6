"""The benchmarks run and report what they promise; what they measure is no matter of a test."""

import json

import pytest
import torch

FIELDS = {
    "method", "case", "mask_tokens", "engine", "batch_size", "images_per_second", "seconds_per_image",
    "tokens_per_image", "token_layers_per_image", "flops_per_image", "mfu", "peak_memory_bytes", "data_wait_share",
    "hardware", "versions", "revision",
}  # fmt: skip


def rows_of(start, tmp_path, *arguments) -> list[dict]:
    out = tmp_path / "rows.json"
    done = start("python", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_throughput_reports_every_cell_and_its_ratios(start, tmp_path):
    arguments = ["--device", "cpu", "--cases", "1", "--methods", "vae,biglearn_u", "--modes", "literal,query_only"]
    arguments += ["--repeats", "1", "--fractions", "--engines", "accelerate"]
    small = ["train.batch_size=8", "objective.plans=1", "model.encoder_depth=1", "model.decoder_depth=1"]
    small += ["engine.zero_stage=2", "engine.cuda_graphs=true"]  # which go together on this engine alone
    rows = rows_of(start, tmp_path, "benchmarks/throughput.py", *arguments, *small)
    cells = [row for row in rows if "mask_fraction" not in row]
    assert [(row["method"], row["mask_tokens"]) for row in cells] == [
        (method, mode) for method in ("vae", "biglearn_u") for mode in ("literal", "query_only")
    ]
    for row in cells:
        assert row.keys() >= FIELDS
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"])
        assert 0 <= row["data_wait_share"] < 1
        assert row["peak_memory_bytes"] > 0
    assert cells[1]["time_against_vae"] == cells[2]["time_against_literal"] == 1
    assert cells[2]["tokens_per_image"] == 3 * 65
    fractions = [row["mask_fraction"] for row in rows if "mask_fraction" in row]
    assert (max(fractions), len(fractions)) == (1.0, 2 * 7)


def test_the_literal_form_is_the_dense_objective(tiny_task_batch):
    from benchmarks.throughput import LiteralTask

    task, batch = tiny_task_batch
    literal = LiteralTask(task.model, task.objective, task.seed)
    for plan in task.plans:
        torch.testing.assert_close(
            literal(batch, plan, beta=0.01)[0], task(batch, plan, beta=0.01)[0], rtol=1e-5, atol=0
        )


@pytest.fixture
def tiny_task_batch():
    from data.batch import Batch
    from model.biglearn import BigLearnModel, ModelConfig
    from model.objective import ObjectiveConfig
    from trainer.tasks.biglearn import BigLearnTask

    sizes = {"embed_dim": 32, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
    config = ModelConfig(**sizes, mask_tokens="dense", residual_init="xavier")
    task = BigLearnTask(BigLearnModel(config, "biglearn_u", 12, 16), ObjectiveConfig(groups=4, plans=3), seed=0)
    return task, Batch(torch.rand(8, 16, 12), torch.arange(8))


def test_stream_compares_every_form(start, tmp_path):
    options = ("--images", "1024", "--repeats", "1", "--patch-size", "16", "--latents")
    rows = rows_of(start, tmp_path, "benchmarks/stream.py", *options)
    assert rows[0]["ratio"] == 1
    assert {row["form"].split(",")[0] for row in rows} == {"Stream", "webdataset", "folder", "latents"}


def test_attention_times_both_phases_of_a_layer(start, tmp_path):
    arguments = ["--device", "cpu", "--cases", "case1", "--dtypes", "fp32", "--batches", "8"]
    rows = rows_of(start, tmp_path, "benchmarks/attention.py", *arguments, "--plans", "1", "--repeats", "1")
    assert [(row["way"], row["ratio"]) for row in rows] == [("rectangles", 1)]  # kernels are interpreted here
    assert rows[0]["ms"] > 0


def test_exporter_times_lines_scrapes_and_steps(start, tmp_path, digits_shards):
    arguments = ["--config", "configs/digits.yaml", "--steps", 2, "--calls", 10]
    arguments += [f"data.shards={digits_shards}", "data.image_size=32", "data.patch_size=8", "engine.name=accelerate"]
    row = rows_of(start, tmp_path, "benchmarks/exporter.py", *arguments)
    assert row["line_share"] == pytest.approx(row["line_seconds"] / row["step_seconds"])
    assert row["scrape_seconds"] > 0


def test_the_measurements_of_a_gpu_run_with_tiny_models_and_go_on_where_they_ended(start, tmp_path):
    command = ("python", "benchmarks/gpu.py", "--smoke", "--out", tmp_path, "--minutes")
    done = start(*command, "30")
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "rows.json").read_text())
    assert [part for part in parts.values() if "error" in part] == []
    assert len(parts) == 8
    assert parts["step"]["rows"][0]["host_seconds"] > 0
    page = (tmp_path / "report.md").read_text()
    assert "| celeba_base | biglearn_u | images_per_second | at least 5,000 |" in page
    assert "not measured" not in page
    del parts["case 2"]
    parts["case 4"] = {**parts["case 4"], "error": "out of memory"}
    (tmp_path / "rows.json").write_text(json.dumps(parts))
    done = start(*command, "0")
    assert "no time was left for case 2: start the same command again" in done.stdout
    (tmp_path / "rows.json").write_text(json.dumps({"tests": {**parts["step"], "hardware": "another"}}))
    done = start(*command, "0")
    assert done.returncode == 2
    assert "was measured on another, this is" in done.stderr
