# Ray's own image, which KubeRay's probes expect, with the service in it:
#   docker build -f docker/kubernetes/ray.Dockerfile -t freqmerge:ray .
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray:users . /opt/freqmerge
RUN pip install --no-cache-dir "/opt/freqmerge[service,ray,redis]"
