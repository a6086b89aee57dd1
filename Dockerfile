FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1


FROM base AS dependencies
RUN python -m venv /opt/venv
# The locked torch brings its CUDA libraries, which this target never loads. The smaller CPU-only torch is
# not an option: it lives on an index of its own, and there is no torchvision, which timm imports, to match it.
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock


FROM base AS cpu
LABEL org.opencontainers.image.title="FreqMerge" \
      org.opencontainers.image.description="Image classification with frequency-guided token merging, over HTTP" \
      org.opencontainers.image.licenses="MIT"

# A fixed uid, so that volumes and Kubernetes' runAsUser can name it.
RUN groupadd --gid 10001 freqmerge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin freqmerge

COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE ./
COPY docker/healthcheck.py docker/
COPY model model
COPY training training
COPY service service
# The root file system may be read-only when the service runs: bytecode is compiled here, caches go to /tmp.
RUN /opt/venv/bin/python -m compileall -q model service training

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    FREQMERGE_HOST=0.0.0.0 \
    FREQMERGE_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "docker/healthcheck.py"]
CMD ["python", "-m", "service"]
