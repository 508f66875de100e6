"""What a run measures: one registry of names, and how it is recorded."""

from dataclasses import dataclass

from pydantic import Field

from data.section import Section


@dataclass(frozen=True)
class Metric:
    """One measured quantity; `unit` is a base unit."""

    name: str
    unit: str
    help: str


REGISTRY = {
    metric.name: metric
    for metric in (
        Metric("step", "steps", "optimizer steps made"),
        Metric("images", "images", "training images seen"),
        Metric("loss", "nats", "what is minimised: minus the ELBO (patch_ae: squared error a pixel)"),
        Metric("elbo", "nats", "eq. (7): reconstruction - beta * kl, mean over the batch"),
        Metric("reconstruction", "nats", "-½ SSE over the pixels of x_T, mean over the batch"),
        Metric("kl", "nats", "KL of the posterior from the prior, mean over the batch"),
        Metric("elbo_joint", "nats", "elbo of the groups with S empty and T everything"),
        Metric("elbo_marginal", "nats", "elbo of the other groups with S empty"),
        Metric("elbo_conditional", "nats", "elbo of the groups with S not empty"),
        Metric("gradient_norm", "1", "L2 norm of the gradient before clipping"),
        Metric("learning_rate", "1", "AdamW's learning rate of the step"),
        Metric("beta", "1", "weight of the KL in the step"),
        Metric("skipped_steps", "steps", "steps that changed nothing because a term or the gradient was not finite"),
        Metric("damaged_images", "images", "damaged training images met by the rank that met most"),
        Metric("world_size", "ranks", "ranks that made the step"),
        Metric("images_per_second", "images/s", "training speed between this line and the last"),
        Metric("seconds_data", "s", "time this rank waited for data since the last line"),
        Metric("seconds_step", "s", "time in steps since the last line"),
        Metric("seconds_forward", "s", "of steps that are timed (metrics.phases_every_steps): forward"),
        Metric("seconds_backward", "s", "of these steps: backward, and what the ranks exchange in it"),
        Metric("seconds_optimizer", "s", "of these steps: the rest"),
        Metric("seconds_evaluation", "s", "time in evaluation and pictures since the last line"),
        Metric("seconds_checkpoint", "s", "time in checkpoints since the last line"),
    )
}


class MetricsConfig(Section):
    """Recording."""

    steps_late: int = Field(4, ge=0)  # terms are read from the device so many steps later: no step waits for them
    phases_every_steps: int = Field(100, ge=0)  # so often forward, backward and optimizer are timed; 0: never
    port: int | None = Field(0, ge=0, lt=2**16)  # for Prometheus, plus the local rank; 0: any; null: no exporter
    host: str = "127.0.0.1"  # the address that it listens on; "0.0.0.0" opens it to other machines
    targets: str = "runs/targets"  # the folder where each rank says where it is to be found
    pushgateway: str | None = None  # URL that gets the last numbers of a finished run
    peak_flops: float | None = Field(None, gt=0)  # of a device; null: of the GPUs whose data sheets we know
