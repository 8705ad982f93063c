#!/bin/sh
# Makes an initramfs around Debian's busybox-static.
#
#   tools/initramfs.sh OUTPUT                     says where it runs, tries some programs, powers off
#   tools/initramfs.sh --static-keys [N] OUTPUT   toggles static keys N times (default 2000) under load
#
# The second one provokes the kernel to patch its own code while other CPUs run it. The "rr86.toggles=N"
# of the kernel's command line goes before the N given here. The archive holds no times and owners of
# the host, so the same busybox gives the same bytes.
set -eu

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

keys= toggles=2000 output=
while [ $# -gt 0 ]; do
    case $1 in
    --static-keys)
        keys=1
        case ${2-} in
        '' | *[!0-9]*) ;;
        *) toggles=$2 && shift ;;
        esac
        ;;
    -*) usage ;;
    *)
        [ -z "$output" ] || usage
        output=$1
        ;;
    esac
    shift
done
[ -n "$output" ] || usage

busybox=${BUSYBOX:-$(command -v busybox || true)}
if [ -z "$busybox" ] || ! command -v cpio >/dev/null; then
    echo "making an initramfs needs a static busybox and cpio (Debian: apt-get install busybox-static cpio)" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/dev" "$work/proc" "$work/sys" "$work/tmp"
cp "$busybox" "$work/bin/busybox"
chmod 755 "$work/bin/busybox"

cat >"$work/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "CPUS: $(grep -c ^processor /proc/cpuinfo)"
uname -a
INIT

if [ -z "$keys" ]; then
    cat >>"$work/init" <<'INIT'
ls /
free
seq 1 200 | sort -r | md5sum
cat /proc/interrupts
echo BOOT-DONE
poweroff -f
INIT
else
    echo "toggles=$toggles" >>"$work/init"
    cat >>"$work/init" <<'INIT'
for word in $(cat /proc/cmdline); do
    case $word in rr86.toggles=*) toggles=${word#*=} ;; esac
done
mount -t tracefs trace /sys/kernel/tracing
schedstats=/proc/sys/kernel/sched_schedstats
events=/sys/kernel/tracing/events/sched
echo 0 >/sys/kernel/tracing/tracing_on
cpus=$(grep -c ^processor /proc/cpuinfo)

# Three programs that sleep, wake one another and switch, so that the code behind the keys (the
# scheduler's) runs on the other CPUs all the time. Only shell built-ins and pipes: no forks.
cat >/tmp/pair <<'EOS'
mkfifo /tmp/there$1 /tmp/back$1
sh -c 'while read x; do echo $x; done' </tmp/there$1 >/tmp/back$1 &
exec 3>/tmp/there$1 4</tmp/back$1
while :; do echo ping >&3; read answer <&4; done
EOS
cat >/tmp/naps <<'EOS'
sh -c 'while :; do usleep 150; done' &
while :; do usleep 100; done
EOS
start() { # PROGRAM NUMBER
    cpu=$((cpus > 1 ? 1 + ($2 - 1) % (cpus - 1) : 0))
    taskset $(printf %x $((1 << cpu))) sh /tmp/$1 $2 &
}
start pair 1
start naps 2
start pair 3
taskset -p 1 $$ >/dev/null

echo "TOGGLES: $toggles"
n=0
while [ $n -lt $toggles ]; do
    n=$((n + 1))
    on=$((n & 1))
    echo $on >$schedstats
    # An event patches more places (its static call and its key), but takes longer.
    [ $((n % 5)) -ne 0 ] || echo $((n / 5 & 1)) >$events/sched_switch/enable
    [ $((n % 50)) -ne 0 ] || echo "TOGGLED $n"
done
echo "TOGGLES-DONE $n"
poweroff -f
INIT
fi
chmod 755 "$work/init"

find "$work" -exec touch -h -d @0 {} +
(cd "$work" && find . | LC_ALL=C sort | cpio -o -H newc --reproducible -R 0:0 --quiet) | gzip -9n >"$output"
