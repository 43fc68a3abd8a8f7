#!/usr/bin/env bash
# Prometheus' programs for the tests of alerts and dashboards: infra/prometheus/programs.sh FOLDER
#
# They are taken out of Debian's package, which is not installed: it would start a service.
set -euo pipefail
mkdir -p "$1"
folder=$(realpath "$1")
[[ -x $folder/promtool && -x $folder/prometheus ]] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download prometheus || { apt-get -qq update && apt-get -qq download prometheus; }
dpkg-deb --extract prometheus_*.deb .
mv usr/bin/prometheus usr/bin/promtool "$folder"
