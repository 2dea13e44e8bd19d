# SPDX-License-Identifier: LGPL-2.1-or-later
# Run by busybox in the guest of virtio.py. Each result is one line: "RESULT name value".
result() { echo "RESULT $*"; }
sum() { md5sum | cut -d' ' -f1; }
mem_kib() { awk '/MemTotal/ {print $2}' /proc/meminfo; }
port=$(sed -n 's/.*tcpport=\([0-9]*\).*/\1/p' /proc/cmdline)

result drivers $(for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done | sort | tr '\n' ' ')
result disk $(cat /sys/block/vda/size) $(cat /sys/block/vda/serial) $(ls /sys/block/vda/mq | wc -l)
mount -t ext4 /dev/vda /mnt
result known $(sum < /mnt/known)
dd if=/dev/urandom of=/mnt/new bs=1M count=8 conv=fsync 2>/dev/null
before=$(sum < /mnt/new)
echo 3 > /proc/sys/vm/drop_caches
result written $([ "$before" = "$(sum < /mnt/new)" ] && echo same)
result trimmed $(fstrim -v /mnt 2>&1 | grep -c 'bytes trimmed')
umount /mnt

result entropy $(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)

ip link set lo up
ip link set eth0 up
result mac $(cat /sys/class/net/eth0/address)
cat > /udhcpc.sh <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
END
chmod +x /udhcpc.sh
udhcpc -i eth0 -s /udhcpc.sh -n -q -t 5 >/dev/null 2>&1
result lease-address $(ip addr show eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p')
result download $(nc -w 10 10.0.2.2 $port </dev/null | sum)

result port-name $(cat /sys/class/virtio-ports/vport*p1/name)
p=$(ls /dev/vport*p1)
exec 3<>$p
echo "from the guest" >&3
result port-input $(head -c 5 <&3)
exec 3>&-
echo "console speaks" > /dev/hvc0

full=$(mem_kib)
echo BALLOON-DOWN
for i in $(seq 60); do [ $(mem_kib) -lt $((full - 90000)) ] && break; sleep 1; done
result deflated-by $(((full - $(mem_kib)) / 1000))
echo BALLOON-UP
for i in $(seq 60); do [ $(mem_kib) -gt $((full - 1000)) ] && break; sleep 1; done
result restored $([ $(mem_kib) -gt $((full - 1000)) ] && echo yes)

# Drivers leave and come back, the disk's while requests are in flight.
for i in 1 2 3; do
    (dd if=/dev/vda of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null &)
    for d in virtio_blk:virtio0 virtio_net:virtio1 virtio_rng:virtio3 virtio_balloon:virtio4; do
        echo ${d#*:} > /sys/bus/virtio/drivers/${d%:*}/unbind
        echo ${d#*:} > /sys/bus/virtio/drivers/${d%:*}/bind
    done
done
mount -t ext4 /dev/vda /mnt
result known-after $(sum < /mnt/known)
umount /mnt
result complaints $(dmesg | grep -cE 'BUG|WARNING|I/O error|hung')
