"""The configuration files of a cluster on one machine, all of whose daemons run as the current user."""

import os
import pwd
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SLURM = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for its old credential to expire: long enough to look at it; `start_now` ends the wait.
AuthInfo=socket={folder}/munge.sock,cred_expire=120
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# Without it a job takes the whole memory of its node.
DefMemPerCPU=100
# More CPUs and memory than this machine has.
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MaxArraySize={max_array}
MaxJobCount=20000
MinJobAge=3600
ReturnToService=1
SlurmctldTimeout=10
# The machine may be busy: nothing is lost, or killed without a checkpoint, for being slow.
SlurmdTimeout=60
KillWait=30
BatchStartTimeout=60
MessageTimeout=20
CompleteWait=0
JobRequeue=1
{accounting}
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database}
AccountingStoragePass={folder}/munge.sock
"""

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database}
SlurmUser={user}
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StoragePass=none
StorageLoc=slurm_acct_db
CommitDelay=1
"""

MARIADB = """\
[mariadbd]
datadir={folder}/database
socket={folder}/mariadb.sock
pid-file={folder}/run/mariadb.pid
user={user}
skip-networking
skip-grant-tables
skip-log-bin
# Nothing has to survive.
innodb_flush_method=O_DIRECT_NO_FSYNC
innodb_flush_log_at_trx_commit=0
innodb_doublewrite=0
innodb_use_native_aio=0
innodb_buffer_pool_size=32M
innodb_log_file_size=8M
innodb_lock_wait_timeout=900
"""


@dataclass(frozen=True)
class Settings:
    """The size of a cluster: `memory` in MB per node, `grace` in seconds, `extra` lines of slurm.conf."""

    nodes: int = 4
    gpus: int = 2
    cpus: int = 8
    memory: int = 8000
    accounting: bool = True
    grace: int = 0
    max_array: int = 1001
    extra: Sequence[str] = ()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range the kernel takes outgoing connections from."""
    found: dict[int, socket.socket] = {}
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
        else:
            found[port] = listener
    for listener in found.values():
        listener.close()
    return list(found)


def write(folder: Path, settings: Settings) -> tuple[int, int]:
    """Write all files; return the ports of slurmctld and slurmdbd."""
    controller, database, *ports = free_ports(settings.nodes + 2)
    values = {"folder": folder, "user": pwd.getpwuid(os.getuid()).pw_name, "database": database}
    gpus = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    machine = f"CPUs={settings.cpus} RealMemory={settings.memory}{gpus}"
    host = f"NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.1"
    nodes = [f"NodeName=node{i} {host} Port={port} {machine}" for i, port in enumerate(ports, 1)]
    accounting = ACCOUNTING.format(**values) if settings.accounting else "AccountingStorageType=accounting_storage/none"
    slurm = SLURM.format(
        **values,
        controller=controller,
        nodes="\n".join(nodes),
        accounting=accounting,
        grace=settings.grace,
        max_array=settings.max_array,
    )
    types = ["GresTypes=gpu"] * bool(settings.gpus)
    (folder / "slurm.conf").write_text("\n".join([*types, slurm, *settings.extra]) + "\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # not used, but loaded; v2 wants a v2-only machine
    (folder / "my.cnf").write_text(MARIADB.format(**values))
    (folder / "slurmdbd.conf").touch(0o600)
    (folder / "slurmdbd.conf").write_text(SLURMDBD.format(**values))
    _write_gpus(folder, settings.gpus)
    return controller, database


def _write_gpus(folder: Path, gpus: int) -> None:
    """Write gres.conf: a GPU is a character device to slurmd, and /dev/null is one."""
    for i in range(gpus):
        (folder / f"nvidia{i}").symlink_to("/dev/null")
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-{gpus - 1}]\n" if gpus else "")


def system_tables() -> str:
    """Return the statements that create MariaDB's system tables; the name of their file depends on its version."""
    files = sorted(Path("/usr/share").glob("m[ay][rs]*/m[ay][rs]*_system_tables.sql"))
    return "create database mysql;\nuse mysql;\n" + files[0].read_text()
