#!/bin/sh
# Fetches a Debian kernel and a static busybox with apt, without installing anything, and leaves vmlinuz,
# initrd.gz and a few modules in a folder (by default build/guest). It is the cloud kernel if no other package is named, be it one
# with a kernel or a meta-package:
#
#   tools/debian-guest.sh [FOLDER [PACKAGE]]
#
#   linux-image-cloud-amd64, linux-image-rt-amd64, linux-image-amd64              the release's own kernel
#   linux-image-6.12-cloud-amd64, linux-image-6.12-rt-amd64, linux-image-6.12-amd64     a newer one
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-build/guest}
named=${2:-linux-image-cloud-amd64}
if ! known=$(apt-cache depends "$named" 2>/dev/null); then
    echo "debian-guest: apt knows no $named; run apt-get update, or name another package" >&2
    exit 1
fi
# A meta-package depends on the one with the kernel.
package=$(echo "$known" | awk '/Depends: linux-image/ { print $2; exit }')
package=${package:-$named}
mkdir -p "$folder"
cd "$folder"
rm -rf unpacked
apt-get download "$package" busybox-static
for each in "$package"_*.deb busybox-static_*.deb; do
    dpkg -x "$each" unpacked
done
cp unpacked/boot/vmlinuz-* vmlinuz
# Two small modules that need no others, for guests that load some.
mkdir -p modules
for name in block/loop net/dummy; do
    for file in unpacked/lib/modules/*/kernel/drivers/"$name".ko unpacked/lib/modules/*/kernel/drivers/"$name".ko.xz; do
        case $file in
        *\**) ;;
        *.xz) xz -dc "$file" >"modules/${name#*/}.ko" ;;
        *) cp "$file" modules ;;
        esac
    done
done
python3 "$here/initramfs.py" unpacked/bin/busybox -o initrd.gz
rm -rf unpacked ./*.deb
echo "$package: $folder/vmlinuz and $folder/initrd.gz"
