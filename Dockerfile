# The mirror as an image: python, a virtual environment, nothing else. docs/cluster.md says how it is run.
#
#     docker build -t registry-mirror .
#
# The base is named by its full version. To build from exactly one image, whatever the tag means tomorrow:
#
#     docker build --build-arg PYTHON=docker.io/library/python@sha256:<digest of the tag below> .
#
# If packages come from an index of your own, its pip.conf is given as a secret that no layer keeps:
#
#     docker build --secret id=pip.conf,src=$HOME/.config/pip/pip.conf .
#
# For upstreams of Google's and Amazon's clouds, and for traces:
#
#     docker build --build-arg EXTRAS=gcp,aws,otel .

ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ARG EXTRAS=""

WORKDIR /src
COPY pyproject.toml README.md ./
COPY mirror ./mirror
# the environment gets no pip of its own: the one of the base installs into it from outside
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf,required=false \
    python3 -m venv --without-pip /opt/mirror \
    && python3 -m pip --python /opt/mirror/bin/python install --no-cache-dir --disable-pip-version-check \
       ".${EXTRAS:+[$EXTRAS]}"


FROM ${PYTHON}

LABEL org.opencontainers.image.title="registry-mirror" \
      org.opencontainers.image.description="A pull-through caching mirror for OCI and Docker registries" \
      org.opencontainers.image.documentation="docs/cluster.md"

# numbers, so that Kubernetes can see that this is not root (runAsNonRoot)
RUN install -d -m 0750 -o 65532 -g 65532 /var/lib/mirror
COPY --from=build /opt/mirror /opt/mirror
COPY config/container.toml /etc/mirror/mirror.toml
COPY config/healthcheck.py /opt/mirror/healthcheck.py

# nothing is written but the store and /tmp: the root filesystem may be read-only
ENV PATH=/opt/mirror/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /var/lib/mirror
VOLUME /var/lib/mirror
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "/opt/mirror/healthcheck.py"]
ENTRYPOINT ["mirror"]
CMD ["serve", "--config", "/etc/mirror/mirror.toml"]
