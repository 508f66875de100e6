"""The steps from raw faces to a trained Ξ: what each does, and what of it is done already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from biglearn_vae.checkpoint import newest_whole
from biglearn_vae.images import CACHE, encoded_images, open_codec, open_index, what_is_encoded
from data.errors import UserError
from data.read.config import DataConfig
from data.read.index import INDEX_NAME, require_folder_path
from data.sources import SOURCES
from data.storage.addresses import TARS
from data.storage.storage import is_there
from data.tars.manifest import MANIFEST_NAME, index_arguments
from trainer.config import Config, load_config
from trainer.resume import identity, whole_identity
from trainer.run_directory import RunDirectory

LAUNCH = Path(__file__).resolve().parents[1]
_SHARED = ("source", "shards")  # keys of data that are alike in both stages; with those of tar files
_OF_TARS = ("test_shards", "label_field", "index")


@dataclass(frozen=True)
class Step:
    """One command.

    command: the script and its arguments, which any number of processes can run together if `parallel`.
    work: the folder that it fills file by file. config: of a training, all overrides in it. whole: why it need not
    run, or None.
    """

    name: str
    title: str
    command: list[str]
    work: Path
    parallel: bool = True
    config: Config | None = None
    whole: str | None = None


@dataclass(frozen=True)
class Stages:
    """Both trainings as they were asked for: a configuration file each, and the overrides that belong to it.

    overrides: those of launch/train.py for stage 2; with "stage_1." before them, for stage 1. run_dir=DIR puts
    everything below DIR. Raises UserError where the file has one stage alone, or the two do not fit.
    """

    stage_1: Config
    stage_2: Config
    path_1: str
    path_2: str
    overrides_1: tuple[str, ...]
    overrides_2: tuple[str, ...]

    @classmethod
    def load(cls, path: str, overrides: Sequence[str]) -> "Stages":
        of_stage_1 = [text.removeprefix("stage_1.") for text in overrides if text.startswith("stage_1.")]
        of_stage_2 = [text for text in overrides if not text.startswith("stage_1.")]
        given = {text.partition("=")[0] for text in of_stage_2}
        if "run_dir" in given:
            asked = load_config(path, of_stage_2)
            base, images = Path(asked.run_dir), "data.index" if asked.data.source == TARS else "data.shards"
            below = {images: "images", "data.latents": "latents", "data.patch_autoencoder": "patch_ae"}
            of_stage_2 += [f"{key}={base / name}" for key, name in below.items() if key not in given]
        stage_2 = load_config(path, of_stage_2)
        data = stage_2.data
        if not stage_2.stage_1 or not data.code_dim or not data.patch_autoencoder:
            raise UserError(
                f"{path} has one stage alone: name the configuration of its PatchAE as stage_1, and set"
                " data.code_dim; or train it with launch/train.py"
            )
        instead = {"run_dir": "data.patch_autoencoder"} | {
            f"data.{key}": f"data.{key}" for key in (*_SHARED, *_OF_TARS, *CACHE)
        }
        for key in {text.partition("=")[0] for text in of_stage_1} & instead.keys():
            raise UserError(f"stage_1.{key} is shared by both stages: set {instead[key]}=...")
        of_stage_1.append(f"run_dir={data.patch_autoencoder}")
        alike = [*_SHARED, *(_OF_TARS if data.source == TARS else ())]
        alike += [key for key in CACHE if key in data.model_fields_set]
        values = {key: getattr(data, key) for key in alike}
        of_stage_1 += [f"data.{key}={'null' if value is None else value}" for key, value in values.items()]
        stage_1 = load_config(stage_2.stage_1, of_stage_1)
        if stage_1.method != "patch_ae":
            raise UserError(f"stage_1 of {path} is a {stage_1.method}, no patch_ae: name configs/celeba_patchae.yaml")
        require_folder_path(data.latents, kind="writable")  # at once, not after the hours of stage 1
        if Path(data.latents).resolve() == Path(data.shards).resolve():
            raise UserError(f"data.latents and data.shards are both {data.shards}: set data.latents to another folder")
        if stage_1.data.image_size != data.image_size:
            sizes = f"{stage_1.data.image_size} pixels in {stage_2.stage_1}, {data.image_size} in {path}"
            raise UserError(f"both stages need images of one size, not {sizes}: set data.image_size alike")
        return cls(stage_1, stage_2, stage_2.stage_1, path, tuple(of_stage_1), tuple(of_stage_2))

    def require_fit(self, world_size: int) -> None:
        """UserError when a batch of either stage does not split over so many processes."""
        for config in (self.stage_1, self.stage_2):
            config.micro_batch_size(world_size)

    def steps(self, source: str | None) -> Iterator[Step]:
        """prepare, stage_1, encode, stage_2, each looked at when its turn has come. source: of the original files."""
        data = self.stage_2.data
        yield _index_step(data, source) if data.source == TARS else _prepare_step(data, source)

        title = f"stage 1, train the PatchAE in {self.stage_1.run_dir}"
        yield _training("stage_1", title, self.path_1, self.overrides_1, self.stage_1)

        command = [script("encode.py"), *encoded_images(data), "--patch-autoencoder", self.stage_1.run_dir]
        command += ["--out", data.latents, "--device", self.stage_2.engine.device, *what_is_encoded(data)]
        yield Step("encode", f"encode the images in {data.latents}", command, Path(data.latents))  # it says when whole

        title = f"stage 2, train on the codes in {self.stage_2.run_dir}"
        yield _training("stage_2", title, self.path_2, self.overrides_2, self.stage_2)


def _prepare_step(data: DataConfig, source: str | None) -> Step:
    command = [script("prepare.py"), data.source, "--out", data.shards, "--image-size", str(data.image_size)]
    command += ["--source", source] if source else []
    is_prepared = is_there(data.shards, INDEX_NAME)
    if SOURCES[data.source].image_files and not source and not is_prepared:
        raise UserError(f"{data.shards} has no images: give the folder of the original files with --source DIR")
    whole = "they are there, and without --source there is nothing to compare them with"
    title, work = f"prepare the images of {data.source} in {data.shards}", Path(data.shards)
    return Step("prepare", title, command, work, parallel=False, whole=whole if is_prepared and not source else None)


def _index_step(data: DataConfig, source: str | None) -> Step:
    if source:
        raise UserError(f"data.shards names the images of source {data.source} already: leave --source out")
    folder = data.index_folder
    asked = index_arguments(data.shards, data.test_shards, data.label_field, folder)
    whole = f"{folder} is there" if is_there(folder, MANIFEST_NAME) else None
    title = f"find the images of {data.shards}"
    return Step("index", title, [script("prepare.py"), *asked], Path(folder), parallel=False, whole=whole)


def script(name: str) -> str:
    """A script of launch/, as it is called from here."""
    here = Path.cwd()
    path = LAUNCH / name
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _training(name: str, title: str, path: str, overrides: Sequence[str], config: Config) -> Step:
    command = [script("train.py"), "--config", path, "--resume", "auto", *overrides]
    work = RunDirectory(config.run_dir).checkpoints
    return Step(name, title, command, work, config=config, whole=why_trained(config))


def why_trained(config: Config) -> str | None:
    """Why a run need not go on: this very model has seen all its images. None when it must."""
    run = RunDirectory(config.run_dir)
    if not run.config.exists():
        return None
    _, checkpoint, _ = newest_whole(run.checkpoints)
    if checkpoint is None or checkpoint.state.images < config.total_images:
        return None
    if not run.evaluation(checkpoint.state.images):
        return None  # it was stopped in its last step
    try:
        codec = open_codec(config.data)
        wanted = identity(config, open_index(config.data, codec), codec)
    except UserError:
        return None  # launch/train.py says what is wrong,
    if whole_identity(checkpoint.state) != wanted:
        return None  # and what differs
    return f"it has learned from {checkpoint.state.images:,} images, and {config.total_images:,} are asked for"
