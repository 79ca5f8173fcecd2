#!/bin/busybox sh
# First program of the demonstration guest: a small real Linux that shows its disk, network and power button at work, then gives a shell.
# Prints `LQX-GUEST-READY boots=N ip=ADDRESS` on the console once everything is up; N counts the boots that found this disk.

/bin/busybox mkdir -p /proc /sys /dev /tmp /run /data /www /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
hostname lqx-guest
exec >/dev/console 2>&1

for module in virtio_pci virtio_blk virtio_net virtio-rng evdev button; do
    modprobe -q "$module" || echo "guest: no module $module"
done

# Devices come a moment after their driver: wait for a disk and a network card, but not for long, as either may be absent by intent.
tries=0
while [ $tries -lt 20 ] && ! { [ -b /dev/vda ] && [ -d /sys/class/net/eth0 ]; }; do
    tries=$((tries + 1))
    sleep 0.1
done

boots=0
if [ -b /dev/vda ]; then
    # A disk of zeros is new; anything else that cannot be mounted is left alone.
    if [ -z "$(dd if=/dev/vda bs=4096 count=16 2>/dev/null | tr -d '\000' | head -c 1)" ]; then
        echo "guest: /dev/vda is blank, making a file system"
        mke2fs -q /dev/vda || echo "guest: mke2fs failed"
    fi
    if mount -t ext4 /dev/vda /data; then
        echo "boot at $(date -u +%Y-%m-%dT%H:%M:%SZ)" >>/data/boots
        sync
        boots=$(grep -c '^boot' /data/boots)
    else
        echo "guest: /dev/vda holds something that is not ours, not mounted"
        boots=unmounted
    fi
fi

ip link set lo up
address=none
if [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    # Goes on in the background after the first answer, to renew the lease.
    udhcpc -i eth0 -n -t 10 -T 1 -A 1 -x hostname:lqx-guest -s /etc/udhcpc.sh >/run/dhcp.log 2>&1 || cat /run/dhcp.log
    address=$(ip -4 -o addr show dev eth0 | sed -n 's/.*inet \([0-9.]*\).*/\1/p' | head -n 1)
    [ -n "$address" ] || address=none
fi

# HTTP on 80 says who and how often; TCP on 7 echoes (RFC 862).
echo "limiquantix guest, boots=$boots" >/www/index.html
httpd -h /www
nc -ll -p 7 -e /bin/cat &

echo "LQX-GUEST-READY boots=$boots ip=$address"
