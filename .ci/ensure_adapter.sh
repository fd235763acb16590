#!/usr/bin/env bash
# See to it that a Vulkan adapter exists: Mesa's software one (llvmpipe) where there is no driver.
# Never fails: without an adapter the package computes on the CPU.
set -euo pipefail
shopt -s nullglob

[ "$(uname -s)" = Linux ] || exit 0

have_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
    local drivers=(/usr/share/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json
        /etc/vulkan/icd.d/*.json "${XDG_DATA_HOME:-${HOME:-/root}/.local/share}"/vulkan/icd.d/*.json)
    [ ${#drivers[@]} -gt 0 ]
}

have_loader() {
    local loaders=(/usr/lib/libvulkan.so.1 /usr/lib64/libvulkan.so.1 /usr/lib/*/libvulkan.so.1
        /usr/local/lib/libvulkan.so.1)
    [ ${#loaders[@]} -gt 0 ] || [[ "${LD_LIBRARY_PATH:-}" == *ulkan* ]]
}

if have_driver && have_loader; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "setup: no Vulkan driver found; install Mesa's (lavapipe) or your GPU's and the Vulkan" \
        "loader. Until then the CPU backend is used."
elif [ "$(id -u)" != 0 ]; then
    echo "setup: no Vulkan driver found; run 'sudo apt-get install mesa-vulkan-drivers libvulkan1'." \
        "Until then the CPU backend is used."
else
    echo "setup: installing mesa-vulkan-drivers (a software Vulkan adapter)"
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
        mesa-vulkan-drivers libvulkan1; } >/dev/null 2>&1; then
        echo "setup: apt-get could not install mesa-vulkan-drivers; the CPU backend is used."
    fi
fi
