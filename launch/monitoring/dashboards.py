"""The Grafana dashboards, as code; what it writes lies in grafana/dashboards/. Needs the `test` extra.

python launch/monitoring/dashboards.py
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries, xychart
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.xychart import XYShowMode

FOLDER = Path(__file__).with_name("grafana") / "dashboards"
IMAGES_A_SECOND, REQUESTS_A_SECOND, NATS = "suffix: img/s", "suffix: req/s", "suffix: nats"
GPU = " (GPU)"  # at the end of the title of a panel that is empty without one

_SOURCE = DataSourceRef(type_val="prometheus", uid="${DS_PROMETHEUS}")
_RUN = 'run=~"$run", model=~"$model", dataset=~"$dataset"'
_LIVING = f'{_RUN}, job="biglearn"'
_RANK = f'{_LIVING}, rank=~"$rank"'
_SERVICE = 'job="biglearn-service", instance=~"$instance"'
Queries = Sequence[tuple[str, str]]  # an expression, and the legend of its series
Levels = Sequence[tuple[float, str]]  # from this value on, this colour
_FORMATS = {xychart.Panel: PromQueryFormat.TABLE, heatmap.Panel: PromQueryFormat.HEATMAP}


def _finish(panel, title: str, description: str, unit: str, queries: Queries, levels: Levels, width: int, height: int):
    """What all panels have."""
    steps = [Threshold(value=None, color="green"), *(Threshold(value=value, color=color) for value, color in levels)]
    panel.title(title).description(description).unit(unit).datasource(_SOURCE).span(width).height(height)
    panel.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    for ref, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        query = prometheus.Dataquery().ref_id(ref).datasource(_SOURCE).expr(expression).legend_format(legend)
        query.format(_FORMATS.get(type(panel), PromQueryFormat.TIME_SERIES))
        panel.with_target(query.instant() if isinstance(panel, stat.Panel) else query.range())
    return panel


def lines(
    title: str,
    description: str,
    unit: str,
    queries: Queries,
    levels: Levels = (),
    width: int = 8,
    is_stacked: bool = False,
):
    """Values against time."""
    panel = timeseries.Panel().fill_opacity(60 if is_stacked else 0).line_width(2).span_nulls(True)
    panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL if is_stacked else StackingMode.NONE))
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel.legend(legend.show_legend(True)).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    return _finish(panel, title, description, unit, queries, levels, width, 8)


def number(title: str, description: str, unit: str, queries: Queries, levels: Levels = (), width: int = 3):
    """The values of now, large."""
    panel = stat.Panel().graph_mode(BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _finish(panel, title, description, unit, queries, levels, width, 4)


def curve(title: str, description: str, unit: str, x: str, y: str, width: int = 12):
    """One value against another, a curve for each run. x and y have the one label `run`."""
    panel = xychart.Panel().show(XYShowMode.POINTS_AND_LINES).line_width(2)
    for id_val, options in (
        ("merge", {}),  # one table: Time, run, Value #A, Value #B
        ("partitionByValues", {"fields": ["run"], "keepFields": False, "naming": {"asLabels": True}}),
        ("filterFieldsByName", {"exclude": {"names": ["Time"]}}),
    ):
        panel.with_transformation(DataTransformerConfig(id_val=id_val, options=options))
    return _finish(panel, title, description, unit, [(x, "x"), (y, "{{run}}")], (), width, 9)


def distribution(title: str, description: str, unit: str, buckets: str, width: int = 8):
    """How often which values come, against time. buckets: a rate of those of a histogram, with the one label `le`."""
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    panel = heatmap.Panel().calculate(False).color(color)
    panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR))
    return _finish(panel, title, description, unit, [(buckets, "{{le}}")], (), width, 8)


def _of_runs(*names: str) -> dict[str, str]:
    """Variables with their queries: each offers what goes with those before it."""
    queries = {}
    for name in names:
        matches = ", ".join(f'{other}=~"${other}"' for other in queries)
        queries[name] = f"label_values(biglearn_steps_total{{{matches}}}, {name})"
    return queries


def _dashboard(uid: str, title: str, description: str, variables: Mapping[str, str], panels: Sequence):
    board = dashboard.Dashboard(title).uid(uid).description(description).tags(["biglearn-vae"]).refresh("10s")
    board.time("now-1h", "now").timezone("browser").editable().tooltip(DashboardCursorSync.CROSSHAIR)
    board.with_variable(dashboard.DatasourceVariable("DS_PROMETHEUS").label("data source").type("prometheus"))
    for name, query in variables.items():
        variable = dashboard.QueryVariable(name).label(name).query(query).datasource(_SOURCE)
        variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
        variable.current(VariableOption(selected=True, text=["All"], value=["$__all"]))
        board.with_variable(variable)
    for number_of_panel, panel in enumerate(panels, 1):
        board.with_panel(panel.id(number_of_panel))
    return board.build()


def _max(expression: str, by: str = "run") -> str:
    """What the ranks of a run have alike: of its living self where there is one, else of what was pushed."""
    living = expression.replace(_RUN, _LIVING)
    return f"max by ({by}) ({living}) or max by ({by}) ({expression})"


def _rate(counter: str, labels: str = _LIVING) -> str:
    return f"rate({counter}{{{labels}}}[$__rate_interval])"


def overview():
    """Is it healthy, how fast is it, what is it waiting for, how far is it?"""
    images, planned = (f"biglearn_images_{name}{{{_LIVING}}}" for name in ("total", "planned"))
    speed, progress = f"max by (run) ({_rate('biglearn_images_total')})", f"run:biglearn_progress:ratio{{{_RUN}}}"
    phases = f"sum by (phase) ({_rate('biglearn_phase_seconds_total')})"
    steps = f"sum by (le, run) ({_rate('biglearn_step_duration_seconds_bucket')})"
    panels = [
        number("Progress", "Images seen of those planned.", "percentunit", [(progress, "{{run}}")]),
        number(
            "Time left", "At the speed of the last minutes.", "s",
            [(f"max by (run) ({planned} - {images}) / ({speed} > 0)", "{{run}}")],
        ),
        number("Speed", "Training images a second, of all ranks.", IMAGES_A_SECOND, [(speed, "{{run}}")]),
        number(
            "Waits for data", "Share of the time of training, of the rank that waits longest.", "percentunit",
            [(f"run:biglearn_data_wait:ratio{{{_RUN}}}", "{{run}}")], [(0.05, "yellow"), (0.2, "red")],
        ),
        number(
            "Test ELBO", "BigLearnELBO of the test images at the last evaluation; higher is better.",
            NATS, [(_max(f'biglearn_evaluation_elbo_nats{{{_RUN}, elbo="biglearn"}}'), "{{run}}")],
        ),
        number(
            "Checkpoint is from", "So much would be lost now.", "s",
            [(f"time() - max by (run) (biglearn_last_checkpoint_timestamp_seconds{{{_LIVING}}})", "{{run}}")],
            [(3600, "yellow"), (7200, "red")],
        ),
        number(
            "Ranks that do not answer", "Killed, or cut off.", "short",
            [(f"sum by (run) (1 - up{{{_LIVING}}})", "{{run}}")], [(1, "red")],
        ),
        number(
            "Started again", "After an end of any kind; under SLURM by the job itself.", "short",
            [(_max(f"biglearn_restarts_total{{{_RUN}}}"), "{{run}}")], [(3, "yellow"), (10, "red")],
        ),
        lines("Speed", "Training images a second, of all ranks.", IMAGES_A_SECOND, [(speed, "{{run}}")]),
        lines(
            "Where the time goes", "Seconds in each second, of all processes of the runs; data: waiting for them.",
            "short", [(phases, "{{phase}}")], is_stacked=True,
        ),
        lines(
            "Duration of a step", "Median and 99th percentile, with the wait for its data.", "s",
            [(f"histogram_quantile({q}, {steps})", "{{run}} " + name) for q, name in ((0.5, "median"), (0.99, "99%"))],
        ),
        lines(
            "Terms of the loss", "Of the last step, a mean over its batch; elbo = reconstruction - beta kl.", NATS,
            [(_max(f'biglearn_loss{{{_RUN}, term=~"elbo|reconstruction|kl"}}', "run, term"), "{{run}} {{term}}")],
        ),
        lines(
            "ELBO by task", "Of the last step: joint (no S, T everything), marginal (no S), conditional.", NATS,
            [(_max(f"biglearn_task_elbo_nats{{{_RUN}}}", "run, task"), "{{run}} {{task}}")],
        ),
        lines(
            "Test ELBO", "Of the averaged weights, under the same masks and noise; higher is better.",
            NATS, [(_max(f"biglearn_evaluation_elbo_nats{{{_RUN}}}", "run, elbo"), "{{run}} {{elbo}}")],
        ),
        lines(
            "In-painting error", "Mean squared error of what is missing, by what is seen: a share, or which patches.",
            "short",
            [(_max(f"biglearn_evaluation_inpainting_error{{{_RUN}}}", "run, observed"), "{{run}} {{observed}}")],
        ),
        lines(
            "Active latent units", "Whose posterior mean varies over the images; too few: the posterior collapses.",
            "short", [(_max(f"biglearn_evaluation_active_latent_units{{{_RUN}}}"), "{{run}}")],
        ),
        lines(
            "Norm of the gradient", "Before clipping.", "short",
            [(_max(f"biglearn_gradient_norm{{{_RUN}}}"), "{{run}}")],
        ),
        lines(
            "Loss", "Of the last step: minus the ELBO, nats; of patch_ae the mean squared error.", "short",
            [(_max(f'biglearn_loss{{{_RUN}, term="loss"}}'), "{{run}}")],
        ),
        lines(
            "Test PSNR of patch_ae", "Of whole images from their codes, at each evaluation.", "dB",
            [(_max(f"biglearn_evaluation_psnr_decibels{{{_RUN}}}"), "{{run}}")],
        ),
        lines(
            "Learning rate and β", "AdamW's rate and the weight of the KL, of the last step.", "sci",
            [
                (_max(f"biglearn_learning_rate{{{_RUN}}}"), "{{run}}, learning rate"),
                (_max(f"biglearn_beta{{{_RUN}}}"), "{{run}}, β"),
            ],
        ),
        lines(
            "What was left out", "Steps that were not finite, and damaged images, since the run began.", "short",
            [
                (_max(f"biglearn_skipped_steps_total{{{_RUN}}}"), "{{run}} steps"),
                (_max(f"biglearn_damaged_images_total{{{_RUN}}}"), "{{run}} images"),
            ],
            [(1, "red")],
        ),
        lines(
            "Model FLOP/s of the peak" + GPU, "MFU: operations of its matrix products, of those the GPUs could do.",
            "percentunit", [(f"run:biglearn_mfu:ratio{{{_RUN}}}", "{{run}}")],
        ),
        lines(
            "Writing a checkpoint", "From its begin until it is complete; training goes on meanwhile.", "s",
            [(_max(f"biglearn_checkpoint_duration_seconds{{{_RUN}}}"), "{{run}}")],
        ),
        lines(
            "Size of a checkpoint", "Weights, average and moments.", "bytes",
            [(_max(f"biglearn_checkpoint_size_bytes{{{_RUN}}}"), "{{run}}")],
        ),
    ]  # fmt: skip
    about = "Is it healthy, how fast is it, what is it waiting for, how far is it?"
    variables = _of_runs("dataset", "model", "run")
    return _dashboard("biglearn-overview", "BigLearn-VAE: run overview", about, variables, panels)


def comparison():
    """What BigLearn costs against the joint VAE of the same data set, size and kind of device."""
    cost, speed = (f"run:biglearn_{name}_against_vae:ratio{{{_RUN}}}" for name in ("cost", "speed"))
    images, seconds = (_max(f"biglearn_{name}_total{{{_RUN}}}") for name in ("images", "training_seconds"))
    elbo = f'biglearn_evaluation_elbo_nats{{{_RUN}, elbo="joint"}}'

    def of_image(counter: str) -> str:
        return _max(f"biglearn_{counter}_total{{{_RUN}}} / biglearn_images_total{{{_RUN}}}", "run, model")

    panels = [
        number("Cost of an image", "Device time, joint VAE = 1.", "short", [(cost, "{{model}} {{run}}")], width=6),
        number("Speed", "In the same device time, joint VAE = 1.", "short", [(speed, "{{model}} {{run}}")], width=6),
        number(
            "Time of an image", "Devices times seconds of training, from the begin of the run on.", "s",
            [(f"run:biglearn_device_seconds_per_image:mean{{{_RUN}}}", "{{model}} {{run}}")], width=6,
        ),
        number(
            "Test JointELBO", "At the last evaluation; higher is better.", NATS,
            [(_max(elbo, "run, model"), "{{model}} {{run}}")], width=6,
        ),
        curve("JointELBO against wall clock", "After so many seconds of training.", NATS, seconds, _max(elbo)),
        curve("JointELBO against images", "After so many training images.", NATS, images, _max(elbo)),
        lines(
            "Speed", "Training images a second, of all ranks, of runs that train now.", IMAGES_A_SECOND,
            [(f"max by (run, model) ({_rate('biglearn_images_total')})", "{{model}} {{run}}")],
        ),
        lines(
            "Operations of an image", "Of the matrix products, forward and backward, counted from the masks.", "short",
            [(of_image("flops"), "{{model}} {{run}}")],
        ),
        lines(
            "Tokens of an image", "That enter the transformer.", "short", [(of_image("tokens"), "{{model}} {{run}}")],
        ),
    ]  # fmt: skip
    about = (
        "What BigLearn costs against the joint VAE of the same data set, size and kind of device. Runs need not be at"
        " work at the same time: metrics.pushgateway keeps the last numbers of those that have finished."
    )
    variables = _of_runs("dataset", "model", "run")
    return _dashboard("biglearn-comparison", "BigLearn-VAE: BigLearn against joint VAE", about, variables, panels)


def ranks():
    """Does one rank hold up the others?"""
    forward, backward, optimizer = (
        f'biglearn_sampled_phase_seconds{{{_RANK}, phase="{phase}"}}' for phase in ("forward", "backward", "optimizer")
    )
    waiting, working = (_rate("biglearn_phase_seconds_total", f"{_RANK}, {phases}") for phases in _PHASES)
    used, total = (f'biglearn_device_memory_bytes{{{_RANK}, kind="{kind}"}}' for kind in ("used", "total"))
    of_rank = "{{run}} rank {{rank}}"
    panels = [
        number("Answers", "1: the rank is there.", "short", [(f"up{{{_RANK}}}", of_rank)], width=6),
        number(
            "Last step", "So long ago; the clocks of its machine and of Prometheus should agree.", "s",
            [(f"time() - biglearn_last_step_timestamp_seconds{{{_RANK}}}", of_rank)], [(120, "yellow"), (600, "red")],
            width=6,
        ),
        number(
            "Memory used" + GPU, "Used by all processes.", "percentunit",
            [(f"{used} / ignoring (kind) {total}", of_rank)], [(0.9, "yellow"), (0.95, "red")], width=6,
        ),
        number(
            "Slowest against faster ones", "Forward of the slowest rank against the faster ones.", "short",
            [(f"max by (run) ({forward}) / quantile by (run) (0.25, {forward})", "{{run}}")],
            [(1.2, "yellow"), (1.5, "red")], width=6,
        ),
        lines(
            "Forward", "Of the last step that was timed. It needs no other rank, so that the slow one stands out.", "s",
            [(forward, of_rank)],
        ),
        lines("Backward", "Of the same step, with what the ranks exchange.", "s", [(backward, of_rank)]),
        lines("Optimizer", "Of the same step: all the rest.", "s", [(optimizer, of_rank)]),
        lines(
            "Waits for data", "Share of its time of training.", "percentunit",
            [(f"{waiting} / ignoring (phase) sum without (phase) ({working})", of_rank)],
            [(0.05, "yellow"), (0.2, "red")],
        ),
        lines(
            "Mean duration of a step", "With the wait for its data.", "s",
            [(f"rank:biglearn_step_duration_seconds:mean1m{{{_RANK}}}", of_rank)],
        ),
        lines("CPU", "Cores at work for the rank.", "short", [(_rate("process_cpu_seconds_total", _RANK), of_rank)]),
        lines("Memory", "Of the process, resident.", "bytes", [(f"process_resident_memory_bytes{{{_RANK}}}", of_rank)]),
        lines(
            "Memory" + GPU, "Allocated by tensors, reserved by torch, used by all, total.", "bytes",
            [(f"biglearn_device_memory_bytes{{{_RANK}}}", of_rank + " {{kind}}")], width=16,
        ),
    ]  # fmt: skip
    variables = _of_runs("dataset", "model", "run", "rank")
    return _dashboard("biglearn-ranks", "BigLearn-VAE: ranks", "Does one rank hold up the others?", variables, panels)


_PHASES = ('phase="data"', 'phase=~"data|step"')
_PARTS = ("bucket", "sum", "count")  # of a histogram


def service():
    """What is asked of it, how fast does it answer, and is it at its limits?"""

    def requests(by: str, labels: str = _SERVICE) -> str:
        return f"sum by ({by}) ({_rate('biglearn_service_requests_total', labels)})"

    def not_answered(by: str) -> str:
        refused = requests(by, _SERVICE + ', status=~"[45].."')
        return f"{refused} / on (instance) group_left () {requests('instance')}"

    def latency(quantile: float, by: str) -> str:
        buckets = _rate("biglearn_service_request_seconds_bucket", _SERVICE)
        return f"histogram_quantile({quantile}, sum by (le, {by}) ({buckets}))"

    waiting, most = (f"biglearn_service_{name}waiting_images{{{_SERVICE}}}" for name in ("", "most_"))
    buckets, images, batches = (_rate(f"biglearn_service_batch_images_{name}", _SERVICE) for name in _PARTS)
    cpu, memory = _rate("process_cpu_seconds_total", _SERVICE), f"process_resident_memory_bytes{{{_SERVICE}}}"
    of_service, of_model, of_route = (f"{{{{instance}}}}{label}" for label in ("", " {{model}}", " {{route}}"))
    panels = [
        number("Answers", "1: the service is there.", "short", [(f"up{{{_SERVICE}}}", of_service)], width=4),
        number(
            "Requests", "Answered, whatever the answer.", REQUESTS_A_SECOND, [(requests("instance"), of_service)],
            width=4,
        ),
        number(
            "Refused or failed", "Share of the requests with a status of 4xx or 5xx.", "percentunit",
            [(not_answered("instance"), of_service)], [(0.05, "yellow"), (0.2, "red")], width=4,
        ),
        number(
            "95% are answered within", "From the last byte of a request to the first of its answer.", "s",
            [(latency(0.95, "instance"), of_service)], [(1, "yellow"), (5, "red")], width=4,
        ),
        number(
            "Queue", "Images that wait, of those that may before requests are refused.", "percentunit",
            [(f"{waiting} / {most}", of_model)], [(0.5, "yellow"), (0.8, "red")], width=4,
        ),
        number("Memory", "Of the process, resident.", "bytes", [(memory, of_service)], width=4),
        lines(
            "Requests by route", "Answered, whatever the answer.", REQUESTS_A_SECOND,
            [(requests("instance, route"), of_route)],
        ),
        lines(
            "Requests by status", "200: answered; 429: too many images waited; other 4xx: mistakes; 5xx: faults.",
            REQUESTS_A_SECOND, [(requests("instance, status"), of_service + " {{status}}")],
        ),
        lines(
            "Refused or failed", "Share of the requests with a status of 4xx or 5xx.", "percentunit",
            [(not_answered("instance, status"), of_service + " {{status}}")], [(0.05, "yellow"), (0.2, "red")],
        ),
        *(
            lines(
                f"Latency: {name}", "From the last byte of a request to the first of its answer, refusals among them.",
                "s", [(latency(quantile, "instance, route"), of_route)],
            )
            for name, quantile in (("median", 0.5), ("95%", 0.95), ("99%", 0.99))
        ),
        lines(
            "Images computed", "Of all batches.", IMAGES_A_SECOND, [(f"sum by (instance, model) ({images})", of_model)],
        ),
        lines("Images of a batch, mean", "Computed at once.", "short", [(f"{images} / {batches}", of_model)]),
        distribution(
            "Images of a batch, distribution", "Batches a second of each size: more than the one below, up to this.",
            "short", f"sum by (le) ({buckets})",
        ),
        lines(
            "Images that wait", "For their turn; from the limit on requests are refused with 429.", "short",
            [(waiting, of_model), (most, of_model + ", limit")],
        ),
        lines("CPU", "Cores at work for the service.", "short", [(cpu, of_service)]),
        lines("Memory", "Of the process, resident.", "bytes", [(memory, of_service)]),
    ]  # fmt: skip
    about = "What is asked of it, how fast does it answer, and is it at its limits?"
    variables = {"instance": 'label_values(up{job="biglearn-service"}, instance)'}
    return _dashboard("biglearn-service", "BigLearn-VAE: service", about, variables, panels)


DASHBOARDS = {"overview": overview, "comparison": comparison, "ranks": ranks, "service": service}


def rendered(name: str) -> str:
    """The file of a dashboard."""
    return JSONEncoder(indent=1, sort_keys=True).encode(DASHBOARDS[name]()) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(rendered(name))
        print(FOLDER / f"{name}.json")
