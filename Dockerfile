# Three targets: `gpu`, the default, serves on a host with CUDA, `cpu` on any other; `train` trains on either.
# docs/guide/containers.md says how each is built and run.
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1


# --- packages: before the code, so that a change of the code leaves these layers as they are ---

# What serves the portable artifact on a CPU: no torch. The folder has no pip of its own, and none is needed later.
FROM base AS light-dependencies
RUN python -m venv --without-pip /opt/venv
COPY requirements-light.lock ./
# The cache also tells the legacy builder apart, which does not know it, and says that this needs BuildKit: that builder
# would build every stage, those for GPUs too.
RUN --mount=type=cache,target=/var/cache/pip \
    pip --python /opt/venv/bin/python install --cache-dir /var/cache/pip --disable-pip-version-check \
        --require-hashes -r requirements-light.lock

FROM base AS dependencies
RUN python -m venv /opt/venv
COPY requirements.lock ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/venv/bin/pip install --cache-dir /var/cache/pip --disable-pip-version-check --require-hashes \
        -r requirements.lock

# Writes the list of packages of an image, in SPDX.
FROM base AS syft
COPY docker/requirements-sbom.lock ./
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --cache-dir /var/cache/pip --disable-pip-version-check --root-user-action ignore --require-hashes \
        -r requirements-sbom.lock

FROM dependencies AS gpu-locked
# Built with the locked setuptools: tensorrt-cu13 is a few Python files, published as source.
COPY docker/requirements-gpu.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation \
        --require-hashes -r requirements-gpu.lock

FROM gpu-locked AS gpu-dependencies
# TensorRT itself, a wheel that only NVIDIA's index has. Asked for nothing else, that index can replace nothing else.
ARG NVIDIA_INDEX=https://pypi.nvidia.com
ARG TENSORRT_VERSION=11.1.0.106
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --only-binary :all: \
        --index-url "$NVIDIA_INDEX" "tensorrt-cu13-libs==$TENSORRT_VERSION"
# The image checks itself: --no-deps has left nothing out, every library of TensorRT's finds those that it needs (but
# for the driver's, which the container runtime hands in), and its Python package can be imported.
RUN /opt/venv/bin/pip check \
 && ! ldd /opt/venv/lib/python3.11/site-packages/tensorrt_libs/*.so* \
          /opt/venv/lib/python3.11/site-packages/tensorrt_bindings/tensorrt.so \
      | grep "not found" | grep --invert-match libcuda.so.1 \
 && /opt/venv/bin/python -c "import tensorrt; print(tensorrt.__version__)"


# --- the code, its bytecode compiled here because the root file system may be read-only later ---

FROM base AS code
WORKDIR /app
COPY LICENSE ./
COPY NOTICE ./
COPY docker/healthcheck.py docker/
COPY model model
COPY service service
RUN python -m compileall -q model service


# --- what all images have in common ---

FROM base AS runtime
LABEL org.opencontainers.image.title="FreqMerge" \
      org.opencontainers.image.description="Image classification with frequency-guided token merging, over HTTP" \
      org.opencontainers.image.licenses="MIT"

# A fixed uid, so that volumes and Kubernetes' runAsUser can name it. A volume that is mounted on one of these
# folders for the first time takes their owner over.
RUN groupadd --gid 10001 freqmerge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin freqmerge \
 && install --directory --owner 10001 --group 10001 /models /var/cache/freqmerge

WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    FREQMERGE_HOST=0.0.0.0 \
    FREQMERGE_PORT=8000
EXPOSE 8000
CMD ["python", "-m", "service"]


# --- the images ---

FROM runtime AS cpu-contents
# Nothing is installed into a running container.
RUN packages="$(python -c 'import os, pip; print(os.path.dirname(os.path.dirname(pip.__file__)))')" \
 && rm -rf "$packages"/pip "$packages"/pip-* /usr/local/bin/pip* \
 && ! python -m pip --version
COPY --from=light-dependencies /opt/venv /opt/venv
COPY --from=code /app /app

FROM syft AS cpu-sbom
# Packages only: a list of their files is ten times as long.
ENV SYFT_FILE_METADATA_SELECTION=none \
    SYFT_RELATIONSHIPS_PACKAGE_FILE_OWNERSHIP=false
ARG VERSION=unknown
RUN --mount=type=bind,from=cpu-contents,target=/image \
    syft scan dir:/image --override-default-catalogers image --source-name freqmerge:cpu --source-version "$VERSION" \
        --output spdx-json=/sbom.spdx.json

FROM cpu-contents AS cpu
COPY --from=cpu-sbom /sbom.spdx.json /usr/share/doc/freqmerge/
# Not a declared volume: where the folder cannot be written, the artifact is compiled at every start.
ENV FREQMERGE_ENGINE_CACHE=/var/cache/freqmerge/engines
USER 10001:10001
# The first start compiles the artifact for this processor, which takes seconds; on a volume it is kept.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 CMD ["python", "docker/healthcheck.py"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM runtime AS train
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /app /app
COPY training training
# The locked torch trains on the CPU and, where NVIDIA's container runtime hands one in, on the GPU.
ENV HF_HOME=/var/cache/freqmerge/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
CMD ["python", "-m", "training.train", "--help"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"

FROM runtime AS gpu
# Triton, which the engine `inductor` compiles with, builds the C module that launches its kernels when it first runs
# one: it needs a C compiler and libc's headers (Python's own come with the base). TensorRT engines need neither.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-dependencies /opt/venv /opt/venv
COPY --from=code /app /app
# What is compiled goes to a volume: /tmp may forbid to execute what lies on it. Only here, and declared: torch makes
# its folder as soon as it is imported, and fails where it cannot. The image `cpu` compiles nothing and stays in /tmp.
# On a CPU only the image `cpu` serves: without a GPU, or with a driver that is too old, this one ends with torch's reason.
# The last three say what NVIDIA's container runtime shall hand in, and which CUDA the driver must know (580 or newer).
ENV FREQMERGE_ENGINE_CACHE=/var/cache/freqmerge/engines \
    HF_HOME=/var/cache/freqmerge/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/var/cache/freqmerge/inductor \
    TRITON_CACHE_DIR=/var/cache/freqmerge/triton \
    FREQMERGE_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
VOLUME /var/cache/freqmerge
USER 10001:10001
# The first start on a kind of GPU builds an engine, which takes minutes; afterwards it lies in the cache. The longest
# start is one whose engine TensorRT refuses after that, so that inductor compiles.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s --retries=3 CMD ["python", "docker/healthcheck.py"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"
