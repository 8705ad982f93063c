#!/bin/sh
# Fetches Debian's cloud kernel and a static busybox with apt, without installing anything, and leaves
# vmlinuz and initrd.gz in a folder (by default build/guest). The package can be named:
#
#   tools/debian-guest.sh [FOLDER [linux-image-PACKAGE]]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-build/guest}
package=${2:-$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')}
if [ -z "$package" ]; then
    echo "debian-guest: apt knows no linux-image-cloud-amd64; run apt-get update, or name a package" >&2
    exit 1
fi
mkdir -p "$folder"
cd "$folder"
rm -rf unpacked
apt-get download "$package" busybox-static
for each in "$package"_*.deb busybox-static_*.deb; do
    dpkg -x "$each" unpacked
done
cp unpacked/boot/vmlinuz-* vmlinuz
python3 "$here/initramfs.py" unpacked/bin/busybox -o initrd.gz
rm -rf unpacked ./*.deb
echo "$package: $folder/vmlinuz and $folder/initrd.gz"
