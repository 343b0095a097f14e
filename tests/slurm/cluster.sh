#!/usr/bin/env bash
# A real Slurm (Debian 12 packages) on one machine, for the tests of this folder.
#
#   cluster.sh install       apt-get the packages
#   cluster.sh run CMD...    in private namespaces (mount, network, PID, UTS, IPC): start the cluster, run CMD, end all,
#                            exit with CMD's status. Nothing is shared with the machine, nothing is left when killed.
#   cluster.sh crash NODE    kill -9 the daemon, steps and tasks of one node   (within `run`)
#   cluster.sh revive NODE   start that node's daemon again                    (within `run`)
#   cluster.sh restart DAEMON...  start slurmdbd or slurmctld again            (within `run`)
#
# Needs root, bash, iproute2 and util-linux; no systemd, no container engine. Everything listens on loopback only, and
# the namespace has no route: what runs in it has no network.
# Partitions `gpu` and `cpu` have NODES nodes. One more node is shared by `preemptible` and `urgent`, and another is that
# of `fragile`, for tests that must not disturb others.
# Knobs (environment): NODES, and CPUS, MEM_MB, GPUS of each node; ACCOUNTING=0 leaves slurmdbd and MariaDB out.
set -euo pipefail

NODES=${NODES:-2} CPUS=${CPUS:-16} MEM_MB=${MEM_MB:-20000} GPUS=${GPUS:-4} ACCOUNTING=${ACCOUNTING:-1}
ALL=$((NODES + 2)) LAB=/run/slurm-lab RUN=/run/slurm-lab/pid SOCKET=/run/slurm-lab/pid/mysqld.sock
SELF=$(readlink -f "$0")

die() { echo "cluster.sh: $*" >&2; exit 1; }
wait_for() { # SECONDS COMMAND...: until COMMAND succeeds
  local i n=$(($1 * 10)); shift
  for i in $(seq "$n"); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  return 1
}

install_packages() {
  local made=0
  # 101 keeps the packages from starting services.
  if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1; fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    munge slurmctld slurmd slurm-client slurmdbd mariadb-server iproute2
  [ $made = 0 ] || rm -f /usr/sbin/policy-rc.d
}

# Real clusters track processes by cgroup, and signals differ there: only the direct child of slurmstepd is told.
has_cgroups() {
  [ -d /sys/fs/cgroup/freezer ] && [ -d /sys/fs/cgroup/cpuacct ] && mkdir /sys/fs/cgroup/memory/slurm-lab-probe 2>/dev/null &&
    rmdir /sys/fs/cgroup/memory/slurm-lab-probe
}

write_configuration() {
  local i last=$((GPUS - 1)) tracking accounting="AccountingStorageType=accounting_storage/none"
  mkdir -p "$LAB"/{ctld,dev,log} "$RUN"
  for i in $(seq "$ALL"); do mkdir -p "$LAB/spool-n$i"; done
  # slurmd wants character devices for GPUs, with the index as the digits of the name: copies of /dev/null will do.
  for i in $(seq 0 $last); do mknod -m 666 "$LAB/dev/nvidia$i" c 1 3; done
  if has_cgroups; then
    tracking="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup"
  else
    tracking="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill"
  fi
  [ "$ACCOUNTING" = 1 ] && accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=limits,qos
AccountingStoreFlags=job_comment"
  # cred_expire is also the delay of a requeued job; MinJobAge as on a cluster with its defaults.
  cat >/etc/slurm/slurm.conf <<CONF
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket.2,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$LAB/ctld
SlurmdSpoolDir=$LAB/spool-%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
$tracking
JobAcctGatherFrequency=task=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
DefMemPerCPU=500
MpiDefault=none
GresTypes=gpu
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=10
ReturnToService=2
InactiveLimit=0
$accounting
NodeName=n[1-$ALL] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-$((17000 + ALL))] CPUs=$CPUS RealMemory=$MEM_MB Gres=gpu:$GPUS State=UNKNOWN
PartitionName=DEFAULT MaxTime=7-0 PreemptMode=OFF PriorityTier=5 State=UP
PartitionName=gpu Nodes=n[1-$NODES] Default=YES
PartitionName=cpu Nodes=n[1-$NODES]
PartitionName=urgent Nodes=n$((NODES + 1))
PartitionName=preemptible Nodes=n$((NODES + 1)) PriorityTier=1 PreemptMode=REQUEUE
PartitionName=fragile Nodes=n$ALL
CONF
  echo "NodeName=n[1-$ALL] Name=gpu File=$LAB/dev/nvidia[0-$last]" >/etc/slurm/gres.conf
  cat >/etc/slurm/cgroup.conf <<CONF
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainCores=no
ConstrainDevices=no
CONF
  # The names that ranks on other nodes resolve.
  printf '127.0.0.1 localhost slurmlab %s\n' "$(seq -s' ' -f 'n%g' "$ALL")" >/etc/hosts
}

start_munge() {
  dd if=/dev/urandom of=/etc/munge/munge.key bs=128 count=1 status=none
  chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key
  install -d -o munge -g munge -m 755 /run/munge
  setpriv --reuid munge --regid munge --clear-groups munged --log-file=/run/munge/munged.log --seed-file=/run/munge/seed
  wait_for 10 sh -c 'munge -n | unmunge' || die "munged did not start"
}

start_accounting() {
  install -d -o mysql -g mysql -m 700 "$LAB/mysql"; chmod 1777 "$RUN"
  mariadb-install-db --no-defaults --user=mysql --datadir="$LAB/mysql" --skip-test-db >"$LAB/log/mariadb-install.log" 2>&1 ||
    die "mariadb-install-db: $(tail -n 3 "$LAB/log/mariadb-install.log")"
  mariadbd --no-defaults --user=mysql --datadir="$LAB/mysql" --skip-networking --socket=$SOCKET --pid-file="$RUN/mariadbd.pid" \
    --skip-log-bin --performance-schema=OFF --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 \
    --innodb-lock-wait-timeout=900 </dev/null >"$LAB/log/mariadbd.log" 2>&1 &
  wait_for 60 mariadb-admin --no-defaults --socket=$SOCKET ping || die "mariadbd did not start"
  mariadb --no-defaults --socket=$SOCKET -e "CREATE DATABASE slurm_acct_db;
    CREATE USER slurm@localhost IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"
  cat >/etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
CommunicationParameters=NoInAddrAny
SlurmUser=root
LogFile=$LAB/log/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
CommitDelay=1
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
  start_slurmdbd
}

start_slurmdbd() {
  MYSQL_UNIX_PORT=$SOCKET slurmdbd
  wait_for 60 sacctmgr -n show cluster || die "slurmdbd did not start: $(tail -n 3 "$LAB/log/slurmdbd.log")"
}

nodes_are_idle() { [ "$(sinfo -h -N -t idle -o %N | sort -u | wc -l)" -ge "$ALL" ]; }

start() {
  local i
  write_configuration
  start_munge
  if [ "$ACCOUNTING" = 1 ]; then start_accounting; fi
  slurmctld
  for i in $(seq "$ALL"); do slurmd -N "n$i"; done
  wait_for 60 nodes_are_idle || die "nodes did not come up: $(tail -n 5 "$LAB"/log/slurmd-n1.log)"
  if [ "$ACCOUNTING" = 1 ]; then
    sacctmgr -i add account lab Description=lab Organization=lab >/dev/null
    sacctmgr -i add user root Account=lab DefaultAccount=lab >/dev/null
    sacctmgr -i add qos narrow MaxSubmitJobsPerUser=1 >/dev/null   # a queue that is full with one job
    sacctmgr -i modify user root set qos+=narrow >/dev/null
  fi
}

inside() {
  local status=0
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 tmpfs /run   # state and database in memory
  mkdir -p $LAB /run/etc-slurm /run/etc-munge
  # The plugin strips SLURM_CONF from the environment of job steps, so the configuration must lie in /etc/slurm.
  mount --bind /run/etc-slurm /etc/slurm
  chown munge: /run/etc-munge; chmod 700 /run/etc-munge; mount --bind /run/etc-munge /etc/munge
  touch /run/hosts; mount --bind /run/hosts /etc/hosts
  hostname slurmlab
  ip link set lo up
  ip addr add 127.0.0.2/8 dev lo   # with 127.0.0.1 alone getaddrinfo finds nothing
  start
  "$@" || status=$?
  scancel -u root || true
  wait_for 15 sh -c '[ -z "$(squeue -h -t R,CG,S -o %i)" ]' || true
  exit $status                     # the PID namespace ends with this process
}

run() {
  [ $# -gt 0 ] || die "run CMD..."
  exec 9>/var/lock/slurm-lab.lock; flock 9   # one cluster at a time: names of cgroups are not private
  remove_cgroups
  # Whoever dies, and be it of SIGKILL, takes what it started along.
  setpriv --pdeathsig KILL unshare --mount --net --pid --uts --ipc --fork --mount-proc --kill-child -- \
    bash "$SELF" _inside "$@" 9>&- &
  local child=$! status=0
  trap 'kill -9 $child 2>/dev/null' EXIT
  trap 'exit 143' TERM INT
  wait $child || status=$?
  remove_cgroups
  exit $status
}

remove_cgroups() {
  local i
  for i in /sys/fs/cgroup/*/slurm_n*; do [ -d "$i" ] && find "$i" -depth -type d -exec rmdir {} + 2>/dev/null; done || true
}

crash() {
  local p
  kill -9 "$(cat "$RUN/slurmd-$1.pid")"; rm -f "$RUN/slurmd-$1.pid"
  # Steps by their open log file, tasks by their environment.
  for p in $(pgrep slurmstepd || true); do
    if readlink /proc/"$p"/fd/* 2>/dev/null | grep -qx "$LAB/log/slurmd-$1.log"; then kill -9 "$p" || true; fi
  done
  for p in /proc/[0-9]*; do
    if tr '\0' '\n' 2>/dev/null <"$p/environ" | grep -qx "SLURMD_NODENAME=$1"; then kill -9 "${p#/proc/}" 2>/dev/null || true; fi
  done
}

command=${1:-}; [ $# -gt 0 ] && shift
case $command in
  install) install_packages ;;
  run) run "$@" ;;
  _inside) inside "$@" ;;
  crash) crash "$1" ;;
  revive) slurmd -N "$1" ;;
  restart) for daemon; do if [ "$daemon" = slurmdbd ]; then start_slurmdbd; else "$daemon"; fi; done ;;
  *) die "install | run CMD... | crash NODE | revive NODE | restart DAEMON..." ;;
esac
