#!/usr/bin/env bash
# What the tests of devices, pages and apps use, on Debian as root: an emulator with a cross compiler, OpenSSH, adb with a real
# adbd, a browser. Without these such tests are skipped, each with its reason.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=(adb binutils chromium g++ g++-aarch64-linux-gnu gcc openssh-client openssh-server qemu-user util-linux)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
tests/devices/install_adbd.sh .venv/adbd
tests/apps/install.sh .venv/apps
