"""A real SLURM cluster on this machine: munged, slurmctld and a slurmd for each node. Needs root and Debian's
slurmctld, slurmd, slurm-client, munge and iproute2, no systemd.

    python tests/slurm/cluster.py --nodes 3 --gpus 8      # until Ctrl-C; to try things by hand

Each node is a set of namespaces of its own: host name, mounts (its /etc/hosts), processes and network
(10.213.0.i on a bridge), so that it can be switched off, or lose its network, without the others.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter", "setpriv")
_SUBNET, _BRIDGE, _PORT = "10.213.0", "biglearn0", 16817
_HOST = f"{_SUBNET}.254"


class Cluster:
    """Started in `directory`; `environment` makes sbatch and its kin talk to it.

    The partitions `main` and `others` hold all nodes; `urgent` takes them from their jobs, who have `grace_s` to leave.
    CPUs, GPUs and features are pretended.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 2,
        cpus: int = 4,
        gpus: int = 0,
        features: str = "",
        others: tuple[str, ...] = (),
        grace_s: int = 20,
    ):
        missing = [name for name in PROGRAMS if not shutil.which(name)]
        if missing:
            raise RuntimeError(
                f"{', '.join(missing)} not found: apt-get install --no-install-recommends slurmctld slurmd slurm-client"
                " munge iproute2"
            )
        self.directory, self.nodes = directory.resolve(), [f"n{i}" for i in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(self.directory / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen] = {}
        self._configure(cpus, gpus, features, others, grace_s)

    def __enter__(self) -> "Cluster":
        try:
            self._start_network()
            munge = f"{self.directory}/munge.socket"
            self._start(
                "munged", "munged", "--foreground", "--force", f"--key-file={self.directory}/munge.key",
                f"--socket={munge}", f"--pid-file={self.directory}/munged.pid",
                f"--seed-file={self.directory}/munge.seed", f"--log-file={self.directory}/munged.log",
            )  # fmt: skip
            self.wait(lambda: self._succeeds("munge", "-n", "-S", munge), "munged")
            controller = self._within("ctl", "slurmctld -D -c")
            self._start("slurmctld", "unshare", "--uts", "--mount", "bash", "-c", controller)
            self.wait(lambda: self._succeeds("scontrol", "ping"), "slurmctld")
            for node in self.nodes:
                self.switch_on(node)
            self.wait(lambda: all(self.node_state(node) == "IDLE" for node in self.nodes), "the nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """End all daemons, jobs and namespaces."""
        for name in reversed(list(self._processes)):
            self._kill(name)
        self._remove_network()

    def switch_on(self, node: str) -> None:
        self._start(
            node, "nsenter", f"--net=/run/netns/{self._namespace(node)}", "unshare", "--uts", "--mount", "--pid",
            "--fork", "--kill-child", "--mount-proc", "bash", "-c", self._within(node, "slurmd -D"),
        )  # fmt: skip

    def switch_off(self, node: str) -> None:
        """Everything on this node is gone at once, as with its power."""
        self._kill(node)

    def unplug(self, node: str) -> None:
        """Its processes go on, and no packet comes or goes."""
        self._run("ip", "link", "set", f"bl-{node}", "down")

    def node_state(self, node: str) -> str:
        return self.tell("sinfo", "-h", "-n", node, "-o", "%T").split("\n")[0].upper()

    def tell(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        return self._run(*command).stdout.strip()

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
        """Until it holds; the limit ends a hang, it judges no speed."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} not after {seconds} s\n{self.tell('squeue')}\n{self.tell('sinfo')}")
            time.sleep(0.2)

    def _configure(self, cpus: int, gpus: int, features: str, others: tuple[str, ...], grace_s: int) -> None:
        directory, names = self.directory, ",".join(self.nodes)
        for name in ("state", "spool"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        addresses = {"localhost": "127.0.0.1", "ctl": _HOST} | {n: self._address(n) for n in self.nodes}
        (directory / "hosts").write_text("".join(f"{address} {name}\n" for name, address in addresses.items()))
        (directory / "cgroup.conf").touch()
        key = directory / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        lines = [
            "ClusterName=test",
            f"SlurmctldHost=ctl({_HOST})",
            f"SlurmctldPort={_PORT}",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "SlurmUser=root",
            # The life of a credential is also how long a job that was requeued waits; 5 s is the least.
            f"AuthInfo=socket={directory}/munge.socket,cred_expire=5",
            f"StateSaveLocation={directory}/state",
            f"SlurmdSpoolDir={directory}/spool/%n",
            f"SlurmdPidFile={directory}/slurmd-%n.pid",
            f"SlurmctldPidFile={directory}/slurmctld.pid",
            f"SlurmctldLogFile={directory}/slurmctld.log",
            f"SlurmdLogFile={directory}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0",
            "SlurmdParameters=config_overrides",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "ReturnToService=2",
            "MpiDefault=none",
            "MailProg=/bin/true",
            "KillWait=10",
            "SlurmdTimeout=6",
            "PropagateResourceLimits=NONE",
            f"PartitionName=main Nodes={names} Default=YES MaxTime=1-0 PriorityTier=1 GraceTime={grace_s}",
            *(f"PartitionName={name} Nodes={names} MaxTime=1-0 PriorityTier=1" for name in others),
            f"PartitionName=urgent Nodes={names} MaxTime=1-0 PriorityTier=9",
        ]
        if gpus:
            lines.append("GresTypes=gpu")
            (directory / "gres.conf").write_text(
                f"NodeName={names} Name=gpu Type=a100 Count={gpus} File={directory}/gpu[0-{gpus - 1}]\n"
            )
            for number in range(gpus):
                os.mknod(directory / f"gpu{number}", 0o600 | 0x2000, os.makedev(1, 3))  # a second /dev/null
        for number, node in enumerate(self.nodes, start=1):
            line = f"NodeName={node} NodeHostname={node} NodeAddr={self._address(node)} Port={_PORT + number}"
            line += f" CPUs={cpus} RealMemory=500000 State=UNKNOWN{f' Gres=gpu:a100:{gpus}' if gpus else ''}"
            lines.append(line + (f" Feature={features}" if features else ""))
        (directory / "slurm.conf").write_text("\n".join(lines) + "\n")

    def _remove_network(self) -> None:
        for node in self.nodes:
            self._run("ip", "link", "del", f"bl-{node}", check=False)  # of a namespace it would go some time later
            self._run("ip", "netns", "del", self._namespace(node), check=False)
        self._run("ip", "link", "del", _BRIDGE, check=False)

    def _start_network(self) -> None:
        self._remove_network()  # of a cluster whose test was killed
        for command in (
            f"ip link add {_BRIDGE} type bridge",
            f"ip addr add {_HOST}/24 dev {_BRIDGE}",
            f"ip link set {_BRIDGE} up",
        ):
            self._run(*command.split())
        for node in self.nodes:
            space = self._namespace(node)
            for command in (
                f"ip netns add {space}",
                f"ip link add bl-{node} type veth peer name eth0 netns {space}",
                f"ip link set bl-{node} master {_BRIDGE} up",
                f"ip -n {space} addr add {self._address(node)}/24 dev eth0",
                f"ip -n {space} link set eth0 up",
                f"ip -n {space} link set lo up",
            ):
                self._run(*command.split())

    def _address(self, node: str) -> str:
        return f"{_SUBNET}.{node[1:]}"

    def _namespace(self, node: str) -> str:
        return f"biglearn-{node}"

    def _within(self, name: str, command: str) -> str:
        """Shell for inside new namespaces: the host's name, its /etc/hosts, then the daemon."""
        hosts = f"mount --bind {self.directory}/hosts /etc/hosts"
        return f"hostname {name} && {hosts} && exec {command} -f {self.directory}/slurm.conf"

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=os.environ | self.environment, start_new_session=True,
            )  # fmt: skip

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _succeeds(self, *command: str) -> bool:
        return self._run(*command, check=False).returncode == 0

    def _run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.environment)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/biglearn-slurm"))
    for name, default in (("nodes", 2), ("cpus", 4), ("gpus", 0), ("grace-s", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--features", default="")
    options = vars(parser.parse_args(arguments))
    shutil.rmtree(options["directory"], ignore_errors=True)
    with Cluster(**options) as cluster:
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
