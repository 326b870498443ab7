#!/usr/bin/env bash
# Installs Debian's Swift compiler (swiftlang, in trixie and later) below a folder, on a machine of an older suite too:
#   tests/apps/install_swift.sh .venv/swift && export EDGEKIT_SWIFTC=$PWD/.venv/swift/swiftc
# It takes 3 GB. The machine's own packages stay as they are: sources are its own with another suite, in an apt
# configuration of its own, and programs are pointed at the folder's libraries. Needs apt, dpkg and patchelf.
set -euo pipefail
folder=$(mkdir -p "${1:?the folder to install into}" && cd "$1" && pwd)
suite=${2:-trixie}
command -v patchelf >/dev/null || { echo "patchelf is missing: apt-get install patchelf" >&2; exit 3; }
. /etc/os-release
own=$(find /etc/apt -name '*.sources' -o -name '*.list' | sort)
mkdir -p "$folder"/apt/{lists/partial,archives/partial,sources,state} "$folder/root"
# Of the machine's sources those of its own suite, deb822 paragraphs or lines, with the other suite in its place.
# shellcheck disable=SC2086
awk -v RS= -v ORS='\n\n' -v old="$VERSION_CODENAME" -v new="$suite" \
    '/^(#.*\n)*Types:/ && $0 ~ "Suites:[^\n]*" old "( |\n|$)" && $0 !~ old "-security" {
        sub("Suites:[^\n]*", "Suites: " new); print }' $own >"$folder/apt/sources/other.sources"
# shellcheck disable=SC2086
grep -hE "^deb .* $VERSION_CODENAME " $own 2>/dev/null | sed "s/ $VERSION_CODENAME / $suite /" \
    >"$folder/apt/sources/other.list" || true
touch "$folder/apt/state/status"
cat >"$folder/apt/apt.conf" <<CONF
Dir::State "$folder/apt/state";
Dir::State::status "$folder/apt/state/status";
Dir::State::lists "$folder/apt/lists";
Dir::Cache "$folder/apt";
Dir::Cache::archives "$folder/apt/archives";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$folder/apt/sources";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$folder/apt/apt.conf"
apt-get update -qq
apt-get install -qq -y --download-only swiftlang libc6-dev libstdc++-14-dev >/dev/null
for package in "$folder"/apt/archives/*.deb; do dpkg -x "$package" "$folder/root"; done
rm -rf "$folder/apt"
root="$folder/root"
for name in bin sbin lib lib64; do [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"; done
swift="$root/usr/libexec/swift" libraries="$root/usr/lib/x86_64-linux-gnu" loader="$root/usr/lib64/ld-linux-x86-64.so.2"
for program in swift-driver swift-frontend swift-help clang-17 lld; do
    patchelf --set-interpreter "$loader" --force-rpath \
        --set-rpath "$swift/lib/swift/linux:$swift/lib/swift/host:$libraries" "$swift/bin/$program"
done
for library in "$swift"/lib/swift/{linux,host}/*.so; do
    [ -L "$library" ] || patchelf --force-rpath --set-rpath "\$ORIGIN:$libraries" "$library"
done
cat >"$folder/swiftc" <<RUN
#!/bin/sh
exec "$swift/bin/swiftc" -sdk "$root" -Xclang-linker "--sysroot=$root" -Xlinker "--dynamic-linker=$loader" \\
    -Xlinker -rpath -Xlinker "$swift/lib/swift/linux:$libraries" -Xlinker --disable-new-dtags "\$@"
RUN
chmod +x "$folder/swiftc"
"$folder/swiftc" --version
