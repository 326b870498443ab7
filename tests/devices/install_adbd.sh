#!/usr/bin/env bash
# A real adbd for tests/test_adb.py: `tests/devices/install_adbd.sh FOLDER`; does nothing where it is there already.
#
# Android's adbd is packaged in Debian's backports. It is unpacked into FOLDER, not installed: a service that gives
# everybody a shell does not belong on a machine. The package source is the machine's own with another suite, in an apt
# configuration of its own, so that nothing of the machine's changes.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
if [ -e "$folder/done" ]; then exit 0; fi

. /etc/os-release
architecture=$(dpkg --print-architecture)
[ "$architecture" = amd64 ] || [ "$architecture" = arm64 ] || { echo "no adbd for $architecture" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs}
# The first source that has the release itself, in either of apt's two formats.
for file in /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] || continue
    awk -v suite="$VERSION_CODENAME" 'BEGIN { RS = ""; FS = "\n" }
        $0 ~ "(^|\n)Suites:[^\n]* ?" suite "( |\n|$)" && $0 !~ /-security/ && !found { print; found = 1 }' "$file"
done | grep -E '^(Types|URIs|Signed-By|Trusted): ' | sed 's/^Types: .*/Types: deb/' > "$work/backports.sources"
if [ -s "$work/backports.sources" ]; then
    printf 'Suites: %s-backports %s\nComponents: main\n' "$VERSION_CODENAME" "$VERSION_CODENAME" >> "$work/backports.sources"
else
    rm "$work/backports.sources"
    sed -nE "s/^(deb( \[[^]]*\])? [^ ]+) $VERSION_CODENAME .*/\1/p" /etc/apt/sources.list | head -1 | while read -r line; do
        printf '%s %s main\n' "$line" "$VERSION_CODENAME-backports" "$line" "$VERSION_CODENAME"
    done > "$work/backports.list"
fi
options=(-qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::Etc::SourceList="$work/backports.list"
    -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none -o Debug::NoLocking=1 -o APT::Sandbox::User=root
    -o pkgCacheFile="" -o Acquire::Retries=3)
[ -e "$work/backports.list" ] || options+=(-o Dir::Etc::SourceList="$work/backports.sources")
apt-get "${options[@]}" update
# adbd and the libraries of Android's that it links, all of which other packages need too, and none of which run anything.
packages=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "adbd=$(apt-cache "${options[@]}" madison adbd | head -1 | cut -d'|' -f2 | tr -d ' ')" |
    grep -E '^(adbd|android-lib[a-z0-9-]*|libprotobuf[0-9a-z]*|libbrotli1|liblz4-1|libzstd1|libssl3)$' | sort -u)
(cd "$work/debs" && apt-get "${options[@]}" -t "$VERSION_CODENAME-backports" download $packages)
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$folder"; done
touch "$folder/done"
