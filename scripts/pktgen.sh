#!/usr/bin/env bash
# Loads a weir node with the kernel's packet generator and prints packets per second.
#
# For kernels that have pktgen (CONFIG_NET_PKTGEN). `cargo xtask bench` measures more, and without it.
#
#   scripts/pktgen.sh -i DEVICE -d VIP -m MAC [-p PORT] [-f FLOWS] [-n PACKETS] [-s BYTES] [-N NETNS]
#
#   -i  device that sends, on the client's side (in the lab: eth0 of the client)
#   -d  VIP, IPv4 or IPv6
#   -m  MAC address of the node's interface
#   -p  UDP port of the service, default 9
#   -f  number of flows (source ports from 1024 on), default 1000, at most 60000
#   -n  packets, default 10000000
#   -s  frame size in bytes, default 64
#   -N  network namespace of the device, as in /run/netns (in the lab: weir-client)
set -euo pipefail

usage() { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
die() { echo "pktgen.sh: $*" >&2; exit 1; }

device='' vip='' mac='' port=9 flows=1000 packets=10000000 size=64 netns=''
while getopts 'i:d:m:p:f:n:s:N:h' option; do
    case $option in
    i) device=$OPTARG ;; d) vip=$OPTARG ;; m) mac=$OPTARG ;; p) port=$OPTARG ;;
    f) flows=$OPTARG ;; n) packets=$OPTARG ;; s) size=$OPTARG ;; N) netns=$OPTARG ;;
    *) usage ;;
    esac
done
[ -n "$device" ] && [ -n "$vip" ] && [ -n "$mac" ] || usage
[ "$flows" -ge 1 ] && [ "$flows" -le 60000 ] || die "-f must be 1 to 60000"
[ "$(id -u)" = 0 ] || die "needs root"

# /proc/net/pktgen shows the namespace of the process that opens it, so everything runs inside.
if [ -n "$netns" ] && [ -z "${PKTGEN_INSIDE:-}" ]; then
    export PKTGEN_INSIDE=1
    exec nsenter --net="/run/netns/$netns" "$0" -i "$device" -d "$vip" -m "$mac" -p "$port" -f "$flows" -n "$packets" -s "$size"
fi

modprobe pktgen 2>/dev/null || true
[ -d /proc/net/pktgen ] || die "this kernel has no pktgen (CONFIG_NET_PKTGEN); use: cargo xtask bench"

write() { echo "$2" >"/proc/net/pktgen/$1" || die "pktgen refused '$2' ($1)"; }
cleanup() {
    echo stop >/proc/net/pktgen/pgctrl 2>/dev/null || true
    echo rem_device_all >/proc/net/pktgen/kpktgend_0 2>/dev/null || true
}
trap cleanup EXIT

write kpktgend_0 rem_device_all
write kpktgend_0 "add_device $device"
for setting in "count $packets" "pkt_size $size" "clone_skb 0" "delay 0" "dst_mac $mac" \
    "udp_dst_min $port" "udp_dst_max $port" "udp_src_min 1024" "udp_src_max $((1024 + flows))" "flag UDPSRC_RND"; do
    write "$device" "$setting"
done
case $vip in
*:*) write "$device" "dst6 $vip" ;;
*) write "$device" "dst $vip" ;;
esac

echo "sending $packets UDP packets of $size bytes, $flows flows, $device -> $vip port $port ..."
write pgctrl start
grep -E 'Result|pps|errors' "/proc/net/pktgen/$device" || cat "/proc/net/pktgen/$device"
