#!/usr/bin/env bash
# A phone of sorts: Android's adbd with a root of its own, and an adb server that alone can reach it.
#   unshare -r -n -m -p -f phone.sh ADBD_FOLDER FOLDER
# FOLDER holds no_vsock.so and the scripts bin/getprop, bin/dumpsys …; its adb.sock is the server's. All of it ends with
# this process, the first one of its pid namespace.
set -euo pipefail
adbd=$1 folder=$2 root=$2/root
size=${PHONE_BYTES:-200m}

mkdir -p "$root"
mount -t tmpfs tmpfs "$root"
mkdir -p "$root"/{proc,sys,dev,usr,etc,adbd,system/bin,data,root}
mount -t tmpfs -o "size=$size" tmpfs "$root/data"
mkdir -p "$root/data/local/tmp"
mount --rbind /usr "$root/usr"
mount --rbind /sys "$root/sys"  # else XNNPACK finds no processor
mount --rbind /dev "$root/dev"
mount --bind "$adbd" "$root/adbd"
mount -t proc proc "$root/proc"
for name in bin lib lib64; do ln -s "usr/$name" "$root/$name"; done
cp "$folder/no_vsock.so" "$root/no_vsock.so"
cp "$folder"/bin/* "$root/system/bin/"
mkdir "$root/dumps" && mount --bind "$folder/dumps" "$root/dumps"

python3 - <<'END'  # ip link set lo up
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0x49))
END
export HOME="$folder" TMPDIR="$folder"
adb -L "localfilesystem:$folder/adb.sock" nodaemon server 2> "$folder/server.log" &
library=/adbd/usr/lib/$(gcc -print-multiarch)
"$(command -v chroot)" "$root" /usr/bin/env -i PATH=/system/bin:/usr/bin HOME=/ ADBD_PORT=6555 LD_PRELOAD=/no_vsock.so \
    LD_LIBRARY_PATH="$library:$library/android" \
    /adbd/usr/lib/android-sdk/platform-tools/adbd 2> "$folder/adbd.log" &
wait
