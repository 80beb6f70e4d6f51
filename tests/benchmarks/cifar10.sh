#!/usr/bin/env bash
# CIFAR-10 with a frozen MobileNetV2, from tar shards to the report: `cifar10.sh DATA WEIGHTS OUTPUT`.
#   DATA     folder with cifar10-{database,query}-*.tar
#   WEIGHTS  mobilenetv2_100_tf_imagenet.safetensors
#   OUTPUT   where everything goes
# Prints the seconds of every stage and, last, the table of mAP@1000 beside PCA-ITQ.
set -euo pipefail
data=$1 weights=$2 output=$3
cd "$(dirname "$0")/../.."

stage() {
  local started=$SECONDS name=$1
  shift
  cibhash "$@" 2>"$output/$name.log" >"$output/$name.json" || { tail -n 1 "$output/$name.log" >&2; exit 1; }
  echo "$name $((SECONDS - started)) s"
}

mkdir -p "$output"
echo "commit $(git rev-parse --short HEAD), $(nproc) cores of $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)"
stage pack pack cifar10 --data "$data" --output "$output/data"
stage train train jobs/recipes/cifar10_mobilenetv2.yaml --dataset "$output/data/train" --output "$output/encoder" \
  --backbone.weights "$weights"
for split in train query database; do
  stage "encode-$split" encode --encoder "$output/encoder" --dataset "$output/data/$split" \
    --output "$output/codes/$split" --features
done
stage index index --codes "$output/codes/database" --output "$output/index" --shards 3
stage evaluate evaluate --queries "$output/codes/query" --database "$output/codes/database" \
  --baseline-fit "$output/codes/train" --output "$output/report" --title "CIFAR-10, MobileNetV2 at 96 px"
cat "$output/report/metrics.md"
