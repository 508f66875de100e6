"""What a run measures: the one registry of names, and how it is recorded.

Another number is one line here: it then goes to metrics.jsonl or evaluations.jsonl, to Prometheus, and into docs/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from data.section import Section

PREFIX = "biglearn_"


@dataclass(frozen=True)
class Family:
    """One family of series.

    of: the names under which the trainer hands its numbers over (those of metrics.jsonl and evaluations.jsonl, of
    trainer/checkpoints/writer.py and trainer/build_prometheus.py), and the values of `labels` for each. each_rank:
    other ranks have it, too, not the first alone. adds: what is handed over is added to what was. bar: those of `of`
    that the progress bar shows.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    each_rank: bool = False
    adds: bool = False
    bar: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As it stands in a query."""
        return PREFIX + self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


def _phases(*names: str) -> dict[str, tuple[str, ...]]:
    return {f"seconds_{name}": (name,) for name in names}


FAMILIES = (
    Family("images", "counter", "training images seen", {"images": ()}),
    Family("steps", "counter", "optimizer steps made", {"step": ()}, each_rank=True),
    Family("tokens", "counter", "tokens that entered the transformer, of all ranks; counted from the masks' sizes"),
    Family("flops", "counter", "operations of the matrix products, forward and backward, of all ranks; counted so"),
    Family("training_seconds", "counter", "wall time of training, without evaluation and checkpoints"),
    Family("device_seconds", "counter", "training_seconds times the ranks that there were: a rank has one device"),
    Family("step_duration_seconds", "histogram", "wall time of a step and of the wait for its data", each_rank=True),
    Family(
        "phase_seconds", "counter", "wall time of this process by what it did (data: the wait for them)",
        _phases("data", "step", "evaluation", "checkpoint"), ("phase",), each_rank=True, adds=True,
    ),
    Family(
        "sampled_phase_seconds", "gauge", "parts of the last step that was timed (metrics.phases_every_steps)",
        _phases("forward", "backward", "optimizer"), ("phase",), each_rank=True,
    ),
    Family(
        "loss", "gauge", "of the last step, nats (loss of patch_ae: mean squared error)",
        {name: (name,) for name in ("loss", "elbo", "reconstruction", "kl")}, ("term",), bar=("elbo", "kl"),
    ),
    Family(
        "task_elbo_nats", "gauge", "ELBO of the last step by task",
        {f"elbo_{name}": (name,) for name in ("joint", "marginal", "conditional")}, ("task",),
    ),
    Family("gradient_norm", "gauge", "L2 norm of the gradient, last step, before clipping", {"gradient_norm": ()}),
    Family("learning_rate", "gauge", "of the last step", {"learning_rate": ()}),
    Family("beta", "gauge", "weight of the KL in the last step", {"beta": ()}),
    Family("skipped_steps", "counter", "steps left out because something was not finite", {"skipped_steps": ()}),
    Family("damaged_images", "counter", "damaged images replaced, of the rank that met most", {"damaged_images": ()}),
    Family(
        "evaluation_elbo_nats", "gauge", "ELBO of the test images at the last evaluation",
        {"biglearn_elbo": ("biglearn",), "joint_elbo": ("joint",), "joint_elbo_standard_prior": ("standard_prior",)},
        ("elbo",),
    ),
    Family(
        "evaluation_inpainting_error", "gauge", "mean squared error a value of what is missing, at the last evaluation",
        {
            "inpainting_error": ("0.5",), "inpainting_error_fifth": ("0.2",),
            "inpainting_error_block": ("all_but_centre",), "inpainting_error_lower": ("upper_half",),
        },
        ("observed",),
    ),
    Family("evaluation_active_latent_units", "gauge", "latent units in use, last evaluation", {"active_units": ()}),
    Family("evaluation_psnr_decibels", "gauge", "of patch_ae at the last evaluation", {"psnr": ()}),
    Family("last_step_timestamp_seconds", "gauge", "when the last step was made", each_rank=True),
    Family("last_checkpoint_timestamp_seconds", "gauge", "when the last one was complete", {"checkpoint_time": ()}),
    Family("checkpoint_duration_seconds", "gauge", "from its begin to complete", {"checkpoint_seconds": ()}),
    Family("checkpoint_size_bytes", "gauge", "of the last checkpoint", {"checkpoint_bytes": ()}),
    Family("restarts", "counter", "starts of this run after the first", {"restarts": ()}),
    Family("images_planned", "gauge", "images after which the run is done", {"images_planned": ()}),
    Family("world_size", "gauge", "ranks", {"world_size": ()}),
    Family("parameters", "gauge", "trained parameters", {"parameters": ()}),
    Family(
        "device_memory_bytes", "gauge", "of the GPU: allocated by tensors, reserved by torch, used by all, total",
        {f"memory_{kind}": (kind,) for kind in ("allocated", "reserved", "used", "total")}, ("kind",), each_rank=True,
    ),
    Family(
        "device_peak_flops_per_second", "gauge", "of the GPU, dense, as its maker says; or metrics.peak_flops",
        {"peak_flops": ()}, each_rank=True,
    ),
    Family("run", "info", "hyperparameters as labels; size is embed_dim x layers"),
)  # fmt: skip

NUMBERS = {number: (family, labels) for family in FAMILIES for number, labels in family.of.items()}
BAR = tuple(number for family in FAMILIES for number in family.bar)


class MetricsConfig(Section):
    """Recording."""

    steps_late: int = Field(4, ge=0)  # terms are read from the device so many steps later: no step waits for them
    phases_every_steps: int = Field(100, ge=0)  # so often forward, backward and optimizer are timed; 0: never
    port: int | None = Field(0, ge=0, lt=2**16)  # for Prometheus, plus the local rank; 0: any; null: no exporter
    host: str = "127.0.0.1"  # the address that it listens on; "0.0.0.0" opens it to other machines
    targets: str = "runs/targets"  # the folder where each rank says where it is to be found
    pushgateway: str | None = None  # URL that gets the last numbers of a finished run
    # experiment trackers, as [tensorboard, mlflow], that get what the logs get; docs/monitoring.md
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    peak_flops: float | None = Field(None, gt=0)  # of a device; null: of the GPUs whose data sheets we know
