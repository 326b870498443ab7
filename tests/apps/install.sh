#!/usr/bin/env bash
# What the tests of generated Android code use, on Debian as root: `tests/apps/install.sh FOLDER`; does nothing where it
# is there already. Without it such tests are skipped, with their reason.
#
# The Kotlin compiler, the classes of ExecuTorch and ONNX Runtime for Android (both from npm packages that carry them),
# android.jar of API 23 and JUnit are unpacked into FOLDER, not installed. The Debian packages come from the machine's
# own source with another suite, in an apt configuration of its own, so that nothing of the machine's changes.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
if [ -e "$folder/done" ] && command -v aapt >/dev/null; then exit 0; fi

missing=()
command -v aapt >/dev/null || missing+=(aapt)
command -v java >/dev/null || missing+=(openjdk-17-jre-headless)
command -v npm >/dev/null || missing+=(npm)
command -v unzip >/dev/null || missing+=(unzip)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One npm package without its dependencies or scripts: `unpack NAME@VERSION WHERE`.
unpack() {
    mkdir -p "$work/npm" "$2"
    tarball=$(cd "$work/npm" && npm pack --silent --ignore-scripts "$1")
    tar -xzf "$work/npm/$tarball" -C "$2" --strip-components=1 --no-same-owner
    rm "$work/npm/$tarball"
}

unpack kotlin-compiler@2.4.20 "$folder/kotlin"
unpack react-native-executorch@0.9.3 "$work/executorch"
cp "$work/executorch/android/libs/classes.jar" "$folder/executorch.jar"
unpack com.github.asus4.onnxruntime@0.4.9 "$work/onnxruntime"
unzip -q -o "$work/onnxruntime/Plugins/Android/onnxruntime.aar" classes.jar -d "$work/aar"
cp "$work/aar/classes.jar" "$folder/onnxruntime.jar"

# The machine's first source that has its release, in either of apt's two formats, as one of `suite`.
. /etc/os-release
source_of() {
    suite=$1
    rm -f "$work"/suite.{sources,list}
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        awk -v suite="$VERSION_CODENAME" 'BEGIN { RS = ""; FS = "\n" }
            $0 ~ "(^|\n)Suites:[^\n]* ?" suite "( |\n|$)" && $0 !~ /-security/ && !found++' "$file"
    done | grep -E '^(Types|URIs|Signed-By|Trusted): ' | sed 's/^Types: .*/Types: deb/' > "$work/suite.sources" || true
    if [ -s "$work/suite.sources" ]; then
        printf 'Suites: %s\nComponents: main\n' "$suite" >> "$work/suite.sources"
        echo "$work/suite.sources"
    else
        sed -nE "s/^(deb( \[[^]]*\])? [^ ]+) $VERSION_CODENAME .*/\1 $suite main/p" /etc/apt/sources.list |
            head -1 > "$work/suite.list"
        echo "$work/suite.list"
    fi
}

# Some packages of `suite`, unpacked: `debs SUITE NAME...`.
debs() {
    suite=$1
    shift
    state=$work/$suite
    mkdir -p "$state"/{lists/partial,cache/archives/partial,debs}
    options=(-qq -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state/cache" -o pkgCacheFile=""
        -o Dir::Etc::SourceList="$(source_of "$suite")" -o Dir::Etc::SourceParts=/dev/null -o Debug::NoLocking=1
        -o Acquire::Languages=none -o APT::Sandbox::User=root -o Acquire::Retries=3)
    apt-get "${options[@]}" update && (cd "$state/debs" && apt-get "${options[@]}" download "$@") || return 1
    for deb in "$state"/debs/*.deb; do dpkg -x "$deb" "$work/debian"; done
}

debs "$VERSION_CODENAME" junit4 libhamcrest-java libandroid-json-org-java
debs sid libandroid-23-java || debs bullseye libandroid-23-java
cp -L "$work"/debian/usr/share/java/junit4.jar "$folder/junit.jar"
cp -L "$work"/debian/usr/share/java/hamcrest-2*.jar "$folder/hamcrest.jar"
cp -L "$work"/debian/usr/share/java/json-android.jar "$folder/json.jar"
cp -L "$(find "$work/debian" -path '*platforms/android-23/android.jar' -o -name 'android-23*.jar' | head -1)" \
    "$folder/android.jar"
touch "$folder/done"
