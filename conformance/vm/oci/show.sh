#!/bin/bash
# Debian's own podman and containerd, each with vitrine-oci as its runtime and systemd as the maker of cgroups. Runs in the guest
# that `make vm-oci` boots, as root, beside vitrine-oci. Each line of output is one thing that was tried; the exit code is that of all.
set -u
bin=/usr/local/bin/vitrine-oci
root=/var/tmp/oci-show/rootfs
failed=0

# try NAME WANT COMMAND...: the command's output has to hold WANT; of an exit code, "code N".
try() {
	local name=$1 want=$2 out code
	shift 2
	out=$("$@" 2>&1)
	code=$?
	case "$out
code $code" in
	*"$want"*) echo "ok    $name" ;;
	*) echo "FAIL  $name: want '$want', got: $out (code $code)"; failed=1 ;;
	esac
}

install -D -m 0755 "$(dirname "$0")/vitrine-oci" $bin
mkdir -p $root/bin $root/proc $root/sys $root/dev $root/tmp $root/etc
install -m 0755 /usr/bin/busybox $root/bin/busybox
for a in sh cat id ls sleep echo tty true; do ln -sf busybox $root/bin/$a; done
mkdir -p /var/tmp/oci-show/bundle && cd /var/tmp/oci-show/bundle || exit 1
rm -f config.json && $bin spec && sed -i "s#\"terminal\": true#\"terminal\": false#; s#\"rootfs\"#\"$root\"#; s#\[\"sh\"\]#[\"sh\", \"-c\", \"cat /sys/fs/cgroup/memory.max; exit 6\"]#; s#\"resources\": {#\"resources\": {\"memory\": {\"limit\": 67108864}, #" config.json
for driver in "" --systemd-cgroup; do
	try "vitrine-oci $driver run: the limit" 67108864 $bin $driver run show1
	try "vitrine-oci $driver run: the exit code" "code 6" $bin $driver run show1
done

podman="podman --runtime $bin --cgroup-manager systemd"
echo "--    $(podman --version)"
try "podman run" "hello from podman" $podman run --rm --rootfs $root sh -c 'echo hello from podman'
try "podman run: the exit code" "code 7" $podman run --rm --rootfs $root sh -c 'exit 7'
try "podman run: an address of the bridge" "eth0" $podman run --rm --rootfs $root cat /proc/net/dev
try "podman run: AppArmor" "containers-default" $podman run --rm --rootfs $root cat /proc/self/attr/current
try "podman run -t" "/dev/pts/0" $podman run --rm -t --rootfs $root tty
try "podman run: a user namespace" " 300000 " $podman run --rm --uidmap 0:300000:65536 --gidmap 0:300000:65536 --rootfs $root cat /proc/self/uid_map
try "podman run: the host's cgroup namespace, and its own cgroup" "cgroup.events" $podman run --rm --cgroupns host --rootfs $root ls /sys/fs/cgroup
try "podman run --detach" "code 0" $podman run --detach --name show2 --memory 64m --rootfs $root sh -c 'trap "exit 3" TERM; while :; do sleep 1; done'
try "podman inspect: the runtime" "$bin running" $podman inspect -f '{{.OCIRuntime}} {{.State.Status}}' show2
scope=$(basename "$($podman inspect -f '{{.State.CgroupPath}}' show2)")
try "systemd has its scope" "MemoryMax=67108864" systemctl show -p MemoryMax "$scope"
try "podman exec" "code 5" $podman exec show2 sh -c 'exit 5'
try "podman exec -t" "/dev/pts/0" $podman exec -t show2 tty
try "podman pause" "Paused" sh -c "$podman pause show2 && $podman ps -a --format '{{.Status}}'"
try "podman unpause" "code 0" $podman unpause show2
try "podman update" "MemoryMax=83886080" sh -c "$podman update --memory 80m show2 && systemctl show -p MemoryMax $scope"
try "podman stop: the exit code" "exited 3" sh -c "$podman stop -t 5 show2 && $podman inspect -f '{{.State.Status}} {{.State.ExitCode}}' show2"
try "podman start" "code 0" $podman start show2
try "podman rm -f" "code 0" $podman rm -f -t 0 show2

systemctl start containerd
echo "--    $(containerd --version)"
ctr() { timeout 100 /usr/bin/ctr "$@"; }
run="--rootfs --runc-binary $bin --runc-systemd-cgroup"
try "ctr run" "hello from containerd" ctr run --rm $run --cgroup machine.slice:ctr:show3 $root show3 sh -c 'echo hello from containerd'
try "ctr run: the exit code" "code 7" ctr run --rm $run --cgroup machine.slice:ctr:show3 $root show3 sh -c 'exit 7'
try "ctr run --detach" "code 0" ctr run --detach $run --cgroup machine.slice:ctr:show4 --memory-limit 50000000 $root show4 sleep 1000
try "the shim's runtime" "$bin" sh -c "grep -ao '$bin' /run/containerd/io.containerd.runtime.v2.task/default/show4/options.json"
try "systemd has its scope" "MemoryMax=49999872" systemctl show -p MemoryMax ctr-show4.scope
try "ctr task exec" "code 4" ctr task exec --exec-id e1 show4 sh -c 'exit 4'
try "ctr task pause" "PAUSED" sh -c "/usr/bin/ctr task pause show4 && /usr/bin/ctr task ls"
try "ctr task resume" "RUNNING" sh -c "/usr/bin/ctr task resume show4 && /usr/bin/ctr task ls"
try "ctr task metrics" "pids.current" ctr task metrics show4
try "ctr task kill" "STOPPED" sh -c "/usr/bin/ctr task kill -s KILL show4 && sleep 2 && /usr/bin/ctr task ls"
try "ctr task rm" "code 137" ctr task rm show4
try "ctr container rm" "code 0" ctr container rm show4

try "no container is left" "code 1" sh -c 'ls -A /run/vitrine-oci /run/containerd/runc/default 2>/dev/null | grep -v : | grep .'
try "no scope is left" "code 1" sh -c "systemctl list-units --all --plain --no-legend 'libpod-[0-9a-f]*' 'ctr-*' 'vitrine-show*' | grep ."
[ $failed = 0 ] && echo "all of it"
exit $failed
