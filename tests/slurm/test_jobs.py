"""What the history of a run says, whatever its order and state."""

import pytest

from data.errors import UserError
from launch.slurm.jobs import Event, jobs_of
from launch.slurm.status import _end


def events(*lines: str) -> list[Event]:
    return [Event("train", "7", what, tuple(details)) for what, *details in map(str.split, lines)]


def write(run, *lines: str) -> None:
    (run / "slurm").mkdir()
    (run / "slurm/history").write_text("".join(f"2026-01-01T00:00:00Z {line}\n" for line in lines))


def test_the_last_submission_of_each_name_counts(tmp_path):
    write(tmp_path, "train 7 submit 1", "train 7 start 1 n1", "train 7 end 75", "other 8 submit 1", "train 9 submit 2")
    assert {name: job for name, (job, _) in jobs_of(tmp_path).items()} == {"other": "8", "train": "9"}
    assert list(jobs_of(tmp_path)) == ["other", "train"]
    assert [event.what for event in jobs_of(tmp_path)["train"][1]] == ["submit"]


def test_a_job_may_start_before_its_submission_is_on_record(tmp_path):
    write(tmp_path, "train 7 start 1 n1", "train 7 submit 1", "train 7 end 0")
    (_, met) = jobs_of(tmp_path)["train"]
    assert [event.what for event in met] == ["start", "submit", "end"]
    assert _end(met) == "done"


def test_a_torn_line_is_no_event(tmp_path):
    write(tmp_path, "train 7 submit 1", "train 7", "", "train 7 start 1 n1")
    assert [event.what for event in jobs_of(tmp_path)["train"][1]] == ["submit", "start"]


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (("submit 1",), "never started"),
        (("submit 1", "cancel"), "cancelled"),
        (("submit 1", "start 1 n1"), "lost"),
        (("start 1 n1", "submit 1"), "lost"),
        (("submit 1", "start 1 n1", "end 75", "start 2 n1"), "lost"),
        (("submit 1", "start 1 n1", "end"), "lost"),
        (("submit 1", "start 1 n1", "end 75"), "stopped (75)"),
        (("submit 1", "start 1 n1", "cancel", "end 75"), "cancelled"),
        (("submit 1", "start 1 n1", "cancel", "end 0"), "done"),
        (("submit 1", "start 1 n1", "end 137", "end 1"), "failed (1)"),
    ],
)
def test_how_a_job_ended(lines, state):
    assert _end(events(*lines)) == state


@pytest.mark.parametrize("name", ["train.sh", "train.yaml"])
def test_files_of_a_person_in_a_folder_called_slurm_stay(tmp_path, name):
    from launch.slurm.submit import _write

    path = tmp_path / "slurm" / name
    path.parent.mkdir()
    path.write_text("#!/bin/bash\nmine\n")
    with pytest.raises(UserError, match="was not written by this command"):
        _write(path, "#!/bin/bash\n# Written by: x\n")
    assert path.read_text() == "#!/bin/bash\nmine\n"
    path.unlink()
    for text in ("#!/bin/bash\n# Written by: x\n", "method: vae\n"):
        _write(path, text)
        assert path.read_text() == text
