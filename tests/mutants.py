"""Bugs that the tests must see: each is put into a copy of the checkout, and its tests must fail there.

    python tests/mutants.py [NAME ...] [--list] [--sound] [--jobs N] [--repo DIR] [--json FILE]

A mutation is found by its text, wherever in data/, model/, evaluation/, trainer/ and launch/ it stands. Without names
all are tried, one line each; exit code 1 if the tests pass with one of them (SURVIVED), or if it cannot be
tried (BROKEN).
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data", "model", "evaluation", "trainer", "launch")
TIMEOUT_S = 600  # of the tests of one mutation; a hang is seen, too
_PYTEST = ("-m", "pytest", "-x", "-q", "-rfEp", "-m", "", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Mutation:
    """A bug: `new` instead of `old`, a text that stands once in the product. tests: pytest's arguments to see it."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # model/
    Mutation(
        "decode-x_S-reads-z",
        "return is_key_BN[:, None, :] & ~(is_observed_BN[:, :, None] & is_z_N)",
        "return is_key_BN[:, None, :].expand(-1, len(is_z_N), -1)",
        ("tests/model/test_attention.py",),
    ),
    Mutation(
        "size-of-T-rounded-down",
        "n_T = np.maximum(1, np.ceil(np.asarray(t_ratio) * (patches - n_S)))",
        "n_T = np.maximum(1, np.floor(np.asarray(t_ratio) * (patches - n_S)))",
        ("tests/model/test_masks.py",),
    ),
    Mutation(
        "kl-divides-by-the-wrong-arm",
        "return 0.5 * (ratio + (mu_q - mu_p).square() * (-logvar_p).exp()",
        "return 0.5 * (ratio + (mu_q - mu_p).square() * (-logvar_q).exp()",
        ("tests/model/test_objective.py",),
    ),
    Mutation(
        "kl-without-beta",
        "return self.reconstruction_B - beta * self.kl_B",
        "return self.reconstruction_B - self.kl_B",
        ("tests/model/test_task.py",),
    ),
    Mutation(
        "bound-with-the-constant-of-variance-1",
        "n_values_B * math.log(2 * math.pi * variance))",
        "n_values_B * math.log(2 * math.pi))",
        ("tests/model/test_capabilities.py", "-k", "linear_gaussian"),
    ),
    Mutation(
        "mask-tokens-without-a-position",
        "rows.append(self.mask_token + position_LE[masked_place_N])",
        "rows.append(self.mask_token.expand(len(masked_place_N), -1))",
        ("tests/model/test_biglearn.py",),
    ),
    Mutation(
        "fused-prior-is-a-posterior",
        "next(own) if group.n_S else value_QZ[-1:].expand(batch, -1) for group in groups",
        "next(own) if group.n_S else value_QZ[:1].expand(batch, -1) for group in groups",
        ("tests/model/test_fused.py", "-k", "marginal"),
    ),
    Mutation(
        "pseudo-gibbs-takes-the-variance-for-sigma",
        "noisy_BLD = mean_BLD + variance**0.5 * noise_BN.view_as(x_BLD)",
        "noisy_BLD = mean_BLD + variance * noise_BN.view_as(x_BLD)",
        ("tests/model/test_capabilities.py", "-k", "pseudo_gibbs"),
    ),
    Mutation(
        "export-is-not-verified",
        'if hashlib.file_digest(file, "sha256").hexdigest() != checksums[name]:',
        "if not checksums[name]:",
        ("tests/model/test_capabilities_of_codes.py",),
    ),
    Mutation(
        "codes-are-not-centred",
        "return (code_BLC.float() - self.mean_C) / self.std_C",
        "return code_BLC.float() / self.std_C",
        ("tests/model/test_codec.py",),
    ),
    Mutation(
        "triton-keeps-the-last-block-of-a-gradient",
        "dz_v_K += tl.sum(",
        "dz_v_K = tl.sum(",
        ("tests/model/test_triton_attention.py",),
    ),
    Mutation(
        "the-upper-half-is-missing",
        "observed_NN = (place_N < side // 2)",
        "observed_NN = (place_N >= side // 2)",
        ("tests/model/test_masks.py", "-k", "standard_masks"),
    ),
    Mutation(
        "elbo-at-the-reference-with-the-beta-of-training",
        "found.elbo_B(REFERENCE_BETA) for name",
        "found.elbo_B(self.objective.beta) for name",
        ("tests/model/test_task.py",),
    ),
    # evaluation/
    Mutation(
        "gaussian-of-what-is-not-centred",
        "delta_BLD = self._patches(given.images_BHWC) - self.mean_LD",
        "delta_BLD = self._patches(given.images_BHWC)",
        ("tests/evaluation/test_gaussian.py", "-k", "filling"),
    ),
    Mutation(
        "gaussian-without-its-noise",
        "sum_MRR.diagonal(dim1=1, dim2=2).add_(self.noise)",
        "sum_MRR.diagonal(dim1=1, dim2=2).add_(1e-9)",
        ("tests/evaluation/test_gaussian.py", "-k", "filling or known_answer"),
    ),
    Mutation(
        "grey-pixel-counts-once",
        "values, copies = self.mean_LD.numel(), 3 // self.channels",
        "values, copies = self.mean_LD.numel(), 1",
        ("tests/evaluation/test_gaussian.py", "-k", "density"),
    ),
    Mutation(
        "grey-channel-with-the-variance-of-a-pixel",
        "noise = beta * self.channels / 3",
        "noise = beta",
        ("tests/evaluation/test_gaussian.py", "-k", "joint_elbo"),
    ),
    Mutation(
        "noise-is-chosen-on-images-of-the-fit",
        "ConditionalGaussian.fit(images_NHWC[~is_left_out_N], patch_size, NOISES[0])",
        "ConditionalGaussian.fit(images_NHWC, patch_size, NOISES[0])",
        ("tests/evaluation/test_gaussian.py", "-k", "left_out"),
    ),
    # data/
    Mutation(
        "exif-turned-the-other-way",
        "{2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}",
        "{2, 3, 6, 7}, {3, 4, 7, 8}, {5, 6, 7, 8}",
        ("tests/data/test_images.py",),
    ),
    Mutation(
        "crc-is-not-compared",
        "if zlib.crc32(self.label_N[index].tobytes(), zlib.crc32(content)) != self._crc32_N[index]:",
        "if index in self.damaged:",
        ("tests/data/test_stream.py",),
    ),
    Mutation(
        "one-damaged-image-fewer-accepted",
        "if len(replaced) > max_damaged:",
        "if len(replaced) >= max_damaged:",
        ("tests/data/test_damage.py",),
    ),
    Mutation(
        "a-held-out-image-stands-in",
        "if sound in self.damaged or not self._is_part_N[sound]:",
        "if sound in self.damaged:",
        ("tests/data/test_holdout.py",),
    ),
    Mutation(
        "celeba-tests-on-the-validation-images",
        '_SPLITS = {"train": "0", "val": "1", "test": "2"}',
        '_SPLITS = {"train": "0", "val": "2", "test": "1"}',
        ("tests/data/test_celeba.py",),
    ),
    Mutation(
        "sidecar-of-another-recipe-counts",
        "if sidecar is None or sidecar.recipe() != recipe or sidecar.shard.images != images:",
        "if sidecar is None or sidecar.shard.images != images:",
        ("tests/trainer/test_encoding.py",),
    ),
    Mutation(
        "folder-without-val",
        '"val": ("val", "valid", "validation", "dev"),',
        '"val": ("valid", "validation", "dev"),',
        ("tests/data/test_folder.py",),
    ),
    Mutation(
        "pipe-is-a-folder",
        're.match(r"pipe:|[a-z][a-z0-9+.-]*://"',
        're.match(r"[a-z][a-z0-9+.-]*://"',
        ("tests/launch/test_faults.py", "-k", "no_folder"),
    ),
    # trainer/
    Mutation(
        "ranks-read-the-same-images",
        "local_positions(first, size, groups, micro * world.size + world.rank, accumulation * world.size)",
        "local_positions(first, size, groups, micro * world.size, accumulation * world.size)",
        ("tests/launch/test_ranks.py", "-k", "srun and accelerate"),
    ),
    Mutation(
        "checkpoint-is-named-before-its-manifest",
        '    write_aside(aside / "manifest.json", json.dumps(manifest, indent=1).encode())\n'
        "    if final.exists():  # the same images again, after a resume from an earlier one\n"
        "        _remove(final)\n"
        "    aside.rename(final)\n",
        "    if final.exists():\n"
        "        _remove(final)\n"
        "    aside.rename(final)\n"
        '    write_aside(final / "manifest.json", json.dumps(manifest, indent=1).encode())\n',
        ("tests/launch/test_faults.py", "-k", "manifest"),
    ),
    Mutation(
        "checkpoint-is-verified-by-size-alone",
        "if size != expected.bytes or _fingerprint(path / name) != expected.model_dump():",
        "if size != expected.bytes:",
        ("tests/trainer/test_checkpoint.py",),
    ),
    Mutation(
        "the-worst-checkpoints-are-kept",
        "first(sorted(scores, key=scores.get)[::-1], config.keep_best)",
        "first(sorted(scores, key=scores.get), config.keep_best)",
        ("tests/trainer/test_checkpoint.py",),
    ),
    Mutation(
        "half-life-in-steps",
        "return 0.5 ** (batch_size / halflife) if halflife else 0.0",
        "return 0.5 ** (1 / halflife) if halflife else 0.0",
        ("tests/trainer/test_schedule.py",),
    ),
    Mutation(
        "accumulated-gradients-are-a-sum",
        "self.accelerator.backward(loss / len(batches))",
        "self.accelerator.backward(loss)",
        ("tests/trainer/test_engine.py", "-k", "accumulation"),
    ),
    Mutation(
        "deepspeed-does-not-clip",
        '"gradient_clipping": max_grad_norm or 0.0,',
        '"gradient_clipping": 0.0,',
        ("tests/trainer/test_engine.py", "-k", "clipped"),
    ),
    Mutation(
        "cosine-counts-the-warm-up",
        "progress = min(1.0, max(0, images - start) / max(1, total_images - start))",
        "progress = min(1.0, images / max(1, total_images))",
        ("tests/trainer/test_schedule.py",),
    ),
    Mutation(
        "muon-without-momentum",
        "torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)",
        "torch._foreach_lerp_(momenta, gradients, 1.0)",
        ("tests/trainer/engines/test_optimizers.py",),
    ),
    Mutation(
        "muon-takes-q-k-and-v-for-one-matrix",
        "name: (3, rows // 3, columns) if",
        "name: (1, rows, columns) if",
        ("tests/trainer/test_golden_losses.py",),
    ),
    Mutation(
        "connected-sets-are-not",
        "connected_BL = torch.where(shape_rank_BL < n_S_B[:, None], shape_rank_BL, patches + rank_BL)",
        "connected_BL = rank_BL",
        ("tests/model/test_masks.py",),
    ),
    Mutation(
        "zero-3-drops-the-weights-it-loads",
        "deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=self.stage == 3)",
        "deepspeed.zero.GatheredParameters([p], modifier_rank=None, enabled=self.stage == 3)",
        ("tests/trainer/test_engine.py", "-k", "full_state"),
    ),
    Mutation(
        "a-gradient-that-is-not-finite-is-applied",
        "skipped = is_invalid(*means.values())",
        'skipped = is_invalid(means["loss"])',
        ("tests/trainer/test_engine.py", "-k", "not_finite"),
    ),
    Mutation(
        "skipped-steps-count-though-not-in-a-row",
        "                self.last_skipped.clear()\n                require_finite(line)\n",
        "                require_finite(line)\n",
        ("tests/trainer/test_metrics.py",),
    ),
    Mutation(
        "resume-with-another-objective",
        'kept = ("method", "seed", "model.", "objective.", "data.patch_size", "data.holdout", "optimizer.name")',
        'kept = ("method", "seed", "model.", "data.patch_size", "data.holdout", "optimizer.name")',
        ("tests/trainer/test_resume.py",),
    ),
    Mutation(
        "test-images-choose-the-checkpoint",
        'return HOLDOUT if self.holdout else "test"',
        'return "test"',
        ("tests/trainer/test_holdout.py",),
    ),
    Mutation(
        "unknown-keys-are-ignored",
        'class Section(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):',
        "class Section(BaseModel, frozen=True, allow_inf_nan=False):",
        ("tests/trainer/test_config.py",),
    ),
    Mutation(
        "device-seconds-of-one-rank",
        'self._numbers["device_seconds", ()] += seconds * line["world_size"]',
        'self._numbers["device_seconds", ()] += seconds',
        ("tests/monitoring/test_exposition.py",),
    ),
    Mutation(
        "in-painting-scored-on-the-whole-image",
        "return (value * missing_BHW).sum((-1, -2)) / size_B",
        "return value.mean((-1, -2))",
        ("tests/trainer/test_assessment.py", "-k", "missing_part"),
    ),
    Mutation(
        "nearest-neighbour-sees-what-is-missing",
        "distance_BN = known_BP @ other_NP.square().T - 2 * x_BP @ other_NP.T",
        "distance_BN = other_NP.square().sum(1) - 2 * x_BP @ other_NP.T",
        ("tests/trainer/test_assessment.py", "-k", "nearest"),
    ),
    Mutation(
        "replayed-steps-keep-their-noise",
        "            buffer.x_BLD.copy_(batch.x_BLD)\n            buffer.index_B.copy_(batch.index_B)\n",
        "            buffer.x_BLD.copy_(batch.x_BLD)\n",
        ("tests/trainer/test_cuda_graphs.py",),
    ),
    Mutation(
        "in-painting-is-measured-on-all-images",
        "count = min(images, evaluator.most_images or images)",
        "count = images",
        ("tests/trainer/test_evaluation.py",),
    ),
    Mutation(
        "one-draw-for-the-mean-of-all",
        "filled_KBHWC.mean(0, keepdim=True)",
        "filled_KBHWC[:1]",
        ("tests/trainer/test_assessment.py", "-k", "standard_masks"),
    ),
    Mutation(
        "density-of-less-than-the-variance-of-the-model",
        "gaussian.with_noise(max(gaussian.noise, vae.variance * gaussian.channels / 3))",
        "gaussian",
        ("tests/trainer/test_assessment.py", "-k", "variance_of_the_model"),
    ),
    # launch/
    Mutation(
        "data-wait-as-a-share-of-the-steps",
        'phase=~"data|step"}[1m])',
        'phase="step"}[1m])',
        ("tests/monitoring/test_prometheus.py", "-k", "unit"),
    ),
    Mutation(
        "options-of-sbatch-without-quotes",
        'lines += [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in options.items()]',
        'lines += [f"#SBATCH --{key}={value}" for key, value in options.items()]',
        ("tests/slurm/test_slurm.py", "-k", "any_name"),
    ),
    Mutation(
        "one-restart-fewer",
        '[ "$fruitless" -le "$restarts" ] && return',
        '[ "$fruitless" -lt "$restarts" ] && return',
        ("tests/slurm/test_slurm.py", "-k", "never_gets_anywhere"),
    ),
    Mutation(
        "a-stopped-run-ends-as-if-done",
        "        )\n        return REQUEUE\n",
        "        )\n        return 0\n",
        ("tests/launch/test_faults.py", "-k", "SIGTERM and accelerate"),
    ),
    Mutation(
        "an-interrupt-ends-like-a-lost-rank",
        "_leave(130)",
        "_leave(LOST)",
        ("tests/launch/test_prepare.py", "-k", "interrupt"),
    ),
)


class BrokenError(Exception):
    """A mutation that cannot be tried, and why."""


def files_of(repo: Path) -> list[str]:
    """Files of a checkout that git knows or would add, relative to it."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in listed if name and (repo / name).is_file()})


def product_of(repo: Path) -> dict[str, str]:
    """The text of each file of the product, by its path in the checkout."""
    paths = (path for room in ROOMS for path in (repo / room).rglob("*") if path.is_file())
    return {
        str(path.relative_to(repo)): path.read_text(errors="replace")
        for path in paths
        if "__pycache__" not in path.parts
    }


def place_of(mutation: Mutation, product: Mapping[str, str]) -> str:
    """The file of the product that holds the text. BrokenError unless it stands there exactly once."""
    places = [name for name, text in product.items() for _ in range(text.count(mutation.old))]
    if len(places) != 1:
        where = f": {', '.join(places)}" if places else ""
        raise BrokenError(f"its text stands {len(places)} times in the product{where}")
    return places[0]


@dataclass(frozen=True)
class Outcome:
    """What became of a run. verdict: "caught", "SURVIVED" or "BROKEN"; by: the test that failed, or what else it is."""

    name: str
    verdict: str
    seconds: float
    by: str = ""

    def __str__(self) -> str:
        by = f"  by {self.by}" if self.verdict == "caught" else f"  {self.by}" if self.by else ""
        return f"{self.verdict:8}  {self.name}  {self.seconds:.0f} s{by}"


def try_mutation(mutation: Mutation, repo: Path) -> Outcome:
    """Run the tests of a mutation in a copy of the checkout that has it."""
    began = time.monotonic()
    try:
        place = place_of(mutation, product_of(repo))
        with copied(repo) as copy:
            path = copy / place
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
            code, output = run_tests(copy, mutation.tests)
        verdict, by = judge(mutation.tests, code, output)
    except BrokenError as error:
        verdict, by = "BROKEN", str(error)
    return Outcome(mutation.name, verdict, time.monotonic() - began, by)


def try_sound(tests: tuple[str, ...], repo: Path) -> Outcome:
    """Run tests in a copy of the checkout as it is, where they must pass."""
    began = time.monotonic()
    with copied(repo) as copy:
        code, output = run_tests(copy, tests)
    verdict, by = judge(tests, code, output)
    verdict = "sound" if verdict == "SURVIVED" else "BROKEN"
    return Outcome(shlex.join(tests), verdict, time.monotonic() - began, by)


def judge(tests: Sequence[str], code: int | None, output: str) -> tuple[str, str]:
    """The verdict on a run of pytest, and by what. code: None after a time-out."""
    if code is None:
        return "caught", f"a hang of {TIMEOUT_S} s"
    files = {test.partition("::")[0] for test in tests}
    lines = re.findall(r"^(PASSED|FAILED|ERROR) (\S+\.py(?:::.*?)?)(?: - .*)?$", output, re.MULTILINE)
    of_tests = [(word, test) for word, test in lines if test.partition("::")[0] in files]
    if code == 0 and of_tests:  # none where all are skipped
        return "SURVIVED", ""
    failed = [test for word, test in of_tests if word != "PASSED"]
    if code in (1, 2) and failed:
        return "caught", failed[0]
    last = (output.strip().splitlines() or ["no output"])[-1]
    return "BROKEN", f"exit code {code} of pytest, and no test that failed: {last}"


@contextmanager
def copied(repo: Path) -> Iterator[Path]:
    """A copy of a checkout, without what git ignores, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        for name in files_of(repo):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_running: set[int] = set()  # the process groups of pytest


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """pytest's exit code, None after a time-out, and its output. Nothing of its process group is left."""
    command = [sys.executable, *_PYTEST, *tests]
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        _running.add(process.pid)
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _running.discard(process.pid)
            _kill(process.pid)
            process.wait()
        file.seek(0)
        return code, file.read()


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def run_all(work: Sequence[Callable[[], Outcome]], jobs: int) -> list[Outcome]:
    """Do all of it, so many at once, and say what became of each."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(one) for one in work]):
                outcomes.append(future.result())
                print(f"{len(outcomes):2}/{len(work)}  {outcomes[-1]}", flush=True)
        except BaseException:  # Ctrl-C, too
            pool.shutdown(wait=False, cancel_futures=True)
            for group in list(_running):
                _kill(group)
            raise
    return outcomes


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutations; default: all")
    parser.add_argument("--list", action="store_true", help="show where each mutation stands, and its tests")
    parser.add_argument("--sound", action="store_true", help="run these tests without a mutation: all must pass")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once; default: %(default)s")
    parser.add_argument("--repo", type=Path, default=ROOT, metavar="DIR", help="the checkout; default: this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    options = parser.parse_args(arguments)
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no mutation is called {', '.join(unknown)}; --list shows all")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    chosen, repo = [known[name] for name in options.names or known], options.repo.resolve()
    if options.list:
        product = product_of(repo)
        for mutation in chosen:
            print(f"{mutation.name}  {place_of(mutation, product)}  {shlex.join(mutation.tests)}")
        return 0
    if options.sound:
        work = [lambda tests=tests: try_sound(tests, repo) for tests in dict.fromkeys(m.tests for m in chosen)]
    else:
        work = [lambda mutation=mutation: try_mutation(mutation, repo) for mutation in chosen]
    outcomes = run_all(work, options.jobs)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    counts = {word: sum(o.verdict == word for o in outcomes) for word in ("sound", "caught", "SURVIVED", "BROKEN")}
    said = f"{counts['sound']} sound" if options.sound else f"{counts['caught']} caught, {counts['SURVIVED']} survived"
    print(said + (f", {counts['BROKEN']} broken" if counts["BROKEN"] else ""))
    return int(counts["SURVIVED"] + counts["BROKEN"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
