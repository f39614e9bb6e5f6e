# docker build -t peft .                                   CPU
# docker build -t peft --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .
# docker run --rm -v "$PWD:/work" peft train recipe.yaml    with --gpus all --shm-size 1g for the GPUs
FROM python:3.12-slim

ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/work/.cache/huggingface \
    XDG_CACHE_HOME=/work/.cache

WORKDIR /src
# torch in a layer of its own: it is large, and a change of this package does not fetch it again
RUN python -m pip install "torch==${TORCH_VERSION}" --extra-index-url "${TORCH_INDEX}"
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY peftcli peftcli
COPY recipes recipes
# hadolint ignore=DL3013 # the package itself, from this directory
RUN python -m pip install ".[demo,metrics,gguf,sentencepiece]"

RUN useradd --uid 1000 --create-home peft && mkdir /work && chown peft /work
USER 1000
WORKDIR /work
ENTRYPOINT ["peft"]
CMD ["--help"]
