#!/usr/bin/env bash
# Tests and benchmarks on a machine with a CUDA device: `PYTHON=python3 gpu.sh OUTPUT`, everything it prints in OUTPUT.
# Needs neither network, Ray nor an installed package: torch, torchvision, timm, triton, numpy, pillow, opencv, pytest;
# where they are there, hypothesis, pydantic, pyarrow and faiss-gpu too, for more tests and for a candidate to compare.
# LOADERS sets the loader processes of either side (default: half of the cores), TIMEOUT the seconds of one step.
# Exit code: 0 if every step ended well; OUTPUT/summary.txt has one line per step.
set -uo pipefail
[[ $# -eq 1 ]] || { echo "usage: [PYTHON=python3] $0 OUTPUT" >&2; exit 2; }
mkdir -p "$1"
output=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3} loaders=${LOADERS:-$((($(nproc) + 1) / 2))} timeout=${TIMEOUT:-580}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
failed=0
: >"$output/summary.txt"

step() {
  local name=$1 started=$SECONDS code=0
  shift
  timeout "$timeout" "$@" >"$output/$name.log" 2>"$output/$name.err" || code=$?
  echo "$name: exit code $code, $((SECONDS - started)) s" | tee -a "$output/summary.txt"
  if ((code)); then
    failed=1
    tail -n 5 "$output/$name.log" "$output/$name.err"
  else
    grep -v '^{' "$output/$name.log" | tail -n 40
  fi
}

benchmark() {
  local name=$1 script=$2
  shift 2
  step "$name" "$python" "tests/benchmarks/$script.py" --device cuda "$@"
}

step machine "$python" -c '
import importlib.metadata, platform, subprocess, torch
subprocess.run(["nvidia-smi"])
print("python", platform.python_version())
for name in ("torch", "torchvision", "timm", "triton", "numpy", "opencv-python-headless", "pillow", "pyarrow"):
    print(name, importlib.metadata.version(name))
print(torch.cuda.get_device_name())
'
# Of the tests that want a device, those that can be imported; no conftest, which serves the tests with Ray.
files=()
for file in $(grep -rl --include='test_*.py' -e 'mark\.gpu' -e 'import DEVICES' tests/cibhash tests/cluster); do
  module=${file%.py}
  if "$python" -c "import ${module//\//.}" 2>/dev/null; then
    files+=("$file")
  else
    echo "tests: $file left out, its imports are missing" | tee -a "$output/summary.txt"
  fi
done
step tests "$python" -m pytest --noconftest -p no:cacheprovider -m gpu "${files[@]}"
benchmark device-search device_search
benchmark augmentation augmentation
benchmark objective objective --released-images 256 512 1024 2048
benchmark step-mobilenetv2 training_step --threads 4 --loaders "$loaders" --steps 20 --warm-steps 10
benchmark step-mobilenetv2-device training_step --threads 4 --loaders "$loaders" --steps 20 --warm-steps 10 \
  --engine device
benchmark step-vgg16 training_step --threads 4 --loaders "$loaders" --steps 20 --warm-steps 10 \
  --backbone vgg16.tv_in1k --image-size 224 --source 500x375
benchmark step-vgg16-device training_step --threads 4 --loaders "$loaders" --steps 20 --warm-steps 10 \
  --backbone vgg16.tv_in1k --image-size 224 --source 500x375 --engine device
without_run=()
"$python" -c 'import pydantic' 2>/dev/null || without_run=(--without-run)
benchmark head-training head_training --threads 4 "${without_run[@]}"
exit "$failed"
