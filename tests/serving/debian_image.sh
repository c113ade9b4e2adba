#!/usr/bin/env bash
# Makes python:3.11-slim's stand-in for tests/serving/test_container.py where no registry of images can be reached: Debian 12
# and its Python 3.11, from Debian's packages. Needs root, debootstrap and buildah; takes a minute.
#   sudo tests/serving/debian_image.sh
set -euo pipefail

export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$root" > "$root.log" 2>&1 \
  || { tail -n 5 "$root.log" >&2; exit 1; }
rm -f "$root.log" "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -sf python3 "$root/usr/bin/python"
cp -r /etc/apt/apt.conf.d /etc/apt/sources.list.d "$root/etc/apt/"  # the mirror that this machine asks
cp /etc/resolv.conf "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/host.crt"  # and the authorities that it trusts
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / > /dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin \
  --env SSL_CERT_FILE=/etc/ssl/host.crt --env PIP_CERT=/etc/ssl/host.crt "$container"
buildah commit --quiet --rm "$container" docker.io/library/python:3.11-slim
