#!/bin/sh
# Starts a real Slurm of one node on this machine, for the tests: controller, node daemon and munge from Debian's
# packages, without accounting. Needs root and Debian or Ubuntu, on a machine that is no cluster's. Safe to call twice.
# `sinfo` then shows the partition "debug"; sbatch, srun, squeue, scancel and scontrol work as on a cluster.
# Logs: /var/log/slurmctld.log and /var/log/slurmd.log. To stop it: sh tests/slurm/up.sh down
set -eu

CONF=/etc/slurm/slurm.conf
MARK="# written by mmssl's tests/slurm/up.sh"
node=$(hostname -s)

ready() { sinfo --noheader --format=%t 2> /dev/null | grep -Eq '^(idle|mix|alloc)$'; }
said() { sinfo --noheader --format='partition %P, %D node, %C CPUs (allocated/idle/other/total)'; }

if [ "${1:-up}" = down ]; then
    scontrol shutdown
    exit 0
fi

if ready; then
    echo "Slurm is up already: $(said)"
    exit 0
fi

if [ -f "$CONF" ] && ! grep -qF "$MARK" "$CONF"; then
    echo "$CONF is there and not of this script: this may be a node of a cluster. Nothing was changed." >&2
    exit 1
fi

if ! command -v slurmctld > /dev/null || ! command -v slurmd > /dev/null || ! command -v munged > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null
fi

mkdir -p /run/munge /var/log/munge /var/lib/munge /etc/munge /etc/slurm /var/spool/slurmd /var/spool/slurmctld
[ -s /etc/munge/munge.key ] || dd if=/dev/urandom bs=1024 count=1 of=/etc/munge/munge.key 2> /dev/null
chown -R munge:munge /run/munge /var/log/munge /var/lib/munge /etc/munge
chmod 755 /run/munge
chmod 400 /etc/munge/munge.key
munge -n > /dev/null 2>&1 || su -s /bin/sh munge -c 'munged --force'

# Four tasks fit also on a machine with one core: config_overrides lets CPUs= say more than there are.
cpus=$(nproc)
[ "$cpus" -ge 4 ] || cpus=4
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
# cred_expire: a requeued job starts after this many seconds, instead of two minutes.
cat > "$CONF" << EOF
$MARK
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=10
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdLogFile=/var/log/slurmd.log
SlurmdSpoolDir=/var/spool/slurmd
StateSaveLocation=/var/spool/slurmctld
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF

pidof slurmctld > /dev/null || slurmctld
pidof slurmd > /dev/null || slurmd
tries=0
until ready; do
    tries=$((tries + 1))
    if [ "$tries" -gt 30 ]; then
        echo "Slurm did not come up. The ends of its logs:" >&2
        tail -n 20 /var/log/slurmctld.log /var/log/slurmd.log >&2
        exit 1
    fi
    # a node that an earlier boot left down or drained
    scontrol update nodename="$node" state=resume 2> /dev/null || true
    sleep 1
done
echo "Slurm is up: $(said)"
