#!/usr/bin/env bash
# CIFAR-10 with a frozen MobileNetV2, from tar shards to one report of both recipes: `cifar10.sh DATA WEIGHTS OUTPUT`.
#   DATA     folder with cifar10-{database,query}-*.tar
#   WEIGHTS  mobilenetv2_100_tf_imagenet.safetensors
#   OUTPUT   where everything goes
# Prints the seconds of every stage and, last, the table of mAP@1000 beside PCA-ITQ and the float features.
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
for recipe in paper neighbour; do
  # The neighbour recipe on top; `paper` changes nothing of the first recipe but what it is about.
  recipes=(cifar10_mobilenetv2)
  [ "$recipe" = neighbour ] && recipes+=(neighbour)
  stage "train-$recipe" train "${recipes[@]}" --dataset "$output/data/train" --output "$output/$recipe/encoder" \
    --backbone.weights "$weights" --precision bfloat16 --compiled --view-cache "$output/views" --checkpoint-every 5
  for split in train query database; do
    stage "encode-$recipe-$split" encode --encoder "$output/$recipe/encoder" --dataset "$output/data/$split" \
      --output "$output/$recipe/codes/$split" --features --logits
  done
done
stage evaluate evaluate --queries "$output/paper/codes/query" --database "$output/paper/codes/database" \
  --baseline-fit "$output/paper/codes/train" --output "$output/report" --title "CIFAR-10, MobileNetV2 at 96 px" \
  --name "Paper recipe" --compare "Neighbour recipe=$output/neighbour/codes/query,$output/neighbour/codes/database"
cat "$output/report/metrics.md"
