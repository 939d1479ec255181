"""The section `launch.slurm`: servers as jobs of a Slurm cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from themis_triton.core.config import SlurmLaunchConfig
from themis_triton.settings.kinds import Allowed, Count, FilePath, Name, PositiveSeconds, Section, Size, refusal
from themis_triton.settings.tls import ProxySettings

_JOBS = SlurmLaunchConfig(slots=(), model_repository=Path())
_SET = ("job-name", "comment", "nodes", "ntasks", "output", "open-mode", "chdir", "parsable", "requeue", "no-requeue")
_NEEDED = ("export", "export-file", "error", "input", "wrap", "array", "wait", "test-only", "clusters", "uid", "gid", "hold")
_KEYS = {name: name for name in ("partition", "account", "qos", "gres", "constraint")}
_KEYS |= {"cpus-per-task": "cpus", "mem": "host_memory", "time": "time_limit_min"}
OWN_OPTIONS = {
    **dict.fromkeys(_SET, "Themis sets it for each job"),
    **dict.fromkeys(_NEEDED, "Themis would not find the job, its output or its variables where it needs them"),
    **{name: f"it has a key, launch.slurm.{key}" for name, key in _KEYS.items()},
}
"""Options of `sbatch` that `launch.slurm.options` may not have, each with the reason. `sbatch` takes their beginnings too."""
_PATTERN_CHARACTERS = "%\\\n"

Word = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f]+$"), Allowed("one word, as `sbatch` takes it")]


def _check_option(text: str) -> str:
    expected = "long options of sbatch in one word, such as --exclusive or --licenses=triton"
    if not text.startswith("--") or len(text) < 3 or any(each.isspace() and each != " " for each in text) or "\0" in text:
        raise refusal(None, expected, "write --NAME or --NAME=VALUE, each as an entry of its own")
    flag = text.removeprefix("--").partition("=")[0]
    own = OWN_OPTIONS.get(flag) or next((why for name, why in OWN_OPTIONS.items() if name.startswith(flag)), None)
    if own is not None:
        raise refusal(f"--{flag} is no option here: {own}", expected, f"remove --{flag}")
    return text


Option = Annotated[str, AfterValidator(_check_option), Allowed("a long option of sbatch: --NAME or --NAME=VALUE")]


class SlurmSettings(Section):
    """Servers as jobs of a Slurm cluster."""

    directory: FilePath = Field(
        description="folder for models' views, logs and ports of the servers; this machine and the nodes see it under the same path"
    )
    jobs: Count | None = Field(
        default=None, description="how many jobs may be submitted, one server a job; `launch.node_types` says it for several kinds of nodes"
    )
    memory: Size | None = Field(default=None, description="device memory that the server of one job may use; by default without a limit")
    sidecar: Name = Field(
        default=_JOBS.sidecar, description="part of the jobs' names that tells them from those of other sidecars of this user"
    )
    partition: Word | None = Field(default=None, description="the partition (`--partition`); by default that of the cluster")
    account: Word | None = Field(default=None, description="the account that is charged (`--account`)")
    qos: Word | None = Field(default=None, description="the quality of service (`--qos`)")
    gres: Word | None = Field(default=None, description="what each job asks of its node (`--gres`), such as gpu:1 or gpu:a100:1")
    constraint: Word | None = Field(default=None, description="features that the node must have (`--constraint`)")
    cpus: Count | None = Field(default=None, description="processors of each job (`--cpus-per-task`)")
    host_memory: Size | None = Field(default=None, description="memory of the node for each job (`--mem`)")
    time_limit_min: Count | None = Field(
        default=None, description="time limit of each job (`--time`), in minutes; by default that of the partition"
    )
    options: list[Option] = Field(default=[], description="further options of `sbatch`, each in one word: --NAME or --NAME=VALUE")
    container: FilePath | None = Field(
        default=None, description="image in which `tritonserver` runs; by default `launch.binary` as the nodes see it"
    )
    container_command: list[str] = Field(
        default=list(_JOBS.container_command),
        min_length=1,
        description="what runs the container; --bind for the folders that it must see, the image and `tritonserver` follow",
    )
    place_timeout_s: PositiveSeconds = Field(default=_JOBS.place_timeout_s, description="maximum wait of a job for a node")
    poll_s: PositiveSeconds = Field(default=_JOBS.poll_s, description="time between two lists of the jobs, one `squeue` for all of them")
    proxy: ProxySettings | None = Field(
        default=None, description="with `launch.tls`: the proxy before each server; Triton then listens on its node's loopback alone"
    )

    @field_validator("directory")
    @classmethod
    def _plain(cls, directory: Path) -> Path:
        if any(each in str(directory) for each in _PATTERN_CHARACTERS):
            raise refusal(None, "a path without '%', '\\' and newlines, which sbatch takes for patterns", "choose another folder")
        return directory
