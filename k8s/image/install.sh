#!/bin/sh
# Install the locked packages: install.sh LOCK PYTHON. With TORCH_INDEX, torch's packages come from that index, in the versions
# of the lock but without its hashes, and CUDA's libraries are left out.
set -eu
lock=$1
python=$2
if [ -z "${TORCH_INDEX:-}" ]; then
    exec uv pip sync --compile-bytecode --python "$python" --require-hashes "$lock"
fi
others=$(mktemp)
# An entry of the lock is a line with a name, and the indented lines after it.
awk '/^[a-z]/ { left_out = $0 ~ /^(torch|torchaudio|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z-]*)==/ } !left_out' "$lock" > "$others"
uv pip sync --compile-bytecode --python "$python" --require-hashes "$others"
grep -oE '^(torch|torchaudio|torchvision)==[0-9.]+' "$lock" > "$others"
uv pip install --compile-bytecode --python "$python" --no-deps --index-url "$TORCH_INDEX" -r "$others"
rm "$others"
