"""Start launch/train.py with steps that are recorded as on a GPU; a replay runs them again."""

import runpy
import sys
from pathlib import Path

import trainer.build
from tests.trainer.engines.test_cuda_graphs import Rerun


def choose(config, device, parameters):
    return config.model_copy(update={"engine": config.engine.model_copy(update={"cuda_graphs": True})})


if __name__ == "__main__":
    trainer.build.choose = choose
    trainer.build.CudaRecorder = lambda: Rerun([])
    sys.argv[0] = str(Path(__file__).resolve().parents[1] / "launch" / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
