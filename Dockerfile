# syntax=docker/dockerfile:1
# One file makes two images: `--target cpu`, which is the default, and `--target mlu`. docs/docker.md
# describes the builds. The file uses only features of both BuildKit and buildah 1.28. A machine's
# own settings for package indexes are the secrets pip.conf and ca.pem. Both are optional, and no
# layer keeps them.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG MAGICMIND_IMAGE=yellow.hub.cambricon.com/magicmind/release/x86_64/magicmind:1.7.0-x86_64-ubuntu18.04-py_3_7
# Holds /python: a relocatable CPython that runs on the SDK image's glibc, which is 2.27.
ARG RELOCATABLE_PYTHON_IMAGE=topfive-python:3.11


# The common parts of both images: an init that needs no libc, and topfive as a wheel.
FROM ${PYTHON_IMAGE} AS package
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.0-* \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements/backend.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    python3 -m venv /opt/pip \
    && /opt/pip/bin/pip install --require-hashes --only-binary=:all: -r backend.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY service service
COPY model_build model_build
RUN /opt/pip/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheel .


# The CPU image's environment is in /opt/topfive/venv. topfive itself changes more often, so it is
# installed in /topfive and copied over the environment in a layer of its own.
FROM ${PYTHON_IMAGE} AS cpu-environment
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/topfive/venv
WORKDIR /build
COPY requirements/cpu.lock ./
# Delete the files that no engine of this project opens: OpenVINO's plugins for GPUs and NPUs, all
# its readers except the one of its own format, and numpy's tests.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    /opt/pip/bin/pip --python /opt/topfive/venv/bin/python3 install \
        --no-deps --require-hashes --only-binary=:all: -r cpu.lock \
    && find /opt/topfive/venv/lib -path '*/openvino/libs/*' \( -name '*_gpu_plugin.so' -o -name '*_npu_plugin.so' \
        -o -name cache.json -o -name '*_frontend.so*' ! -name '*_ir_frontend.so*' \) -delete \
    && find /opt/topfive/venv/lib -path '*/numpy/*' -name tests -prune -exec rm -r {} +
COPY --from=package /wheel /wheel
RUN /opt/pip/bin/pip --python /opt/topfive/venv/bin/python3 install \
        --no-deps --no-index --no-warn-script-location --root /topfive /wheel/*.whl


# The SDK's own Python is not moved and stays first on the path. The service's Python is in a folder
# of its own.
FROM ${RELOCATABLE_PYTHON_IMAGE} AS relocatable-python

FROM ${MAGICMIND_IMAGE} AS mlu-base
COPY --from=relocatable-python /python /opt/topfive/python

FROM mlu-base AS mlu-environment
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Clear an SDK's PYTHONPATH, which is for another Python.
ENV PYTHONPATH=
RUN /opt/topfive/python/bin/python3 -m venv /opt/pip \
    && /opt/topfive/python/bin/python3 -m venv --without-pip /opt/topfive/venv
WORKDIR /build
COPY requirements/mlu.lock ./
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.pem \
    /opt/pip/bin/pip --python /opt/topfive/venv/bin/python3 install \
        --no-deps --require-hashes --only-binary=:all: -r mlu.lock \
    && find /opt/topfive/venv/lib -path '*/openvino/libs/*' \( -name '*_gpu_plugin.so' -o -name '*_npu_plugin.so' \
        -o -name cache.json \) -delete
COPY --from=package /wheel /wheel
RUN /opt/pip/bin/pip --python /opt/topfive/venv/bin/python3 install \
        --no-deps --no-index --no-warn-script-location --root /topfive /wheel/*.whl


# From here on, mlu and cpu differ only in their base and their path; tests/project/test_docker.py checks that.
FROM mlu-base AS mlu
ARG MAGICMIND_IMAGE
LABEL org.opencontainers.image.base.name="${MAGICMIND_IMAGE}"
COPY --from=package /usr/bin/tini-static /usr/bin/tini
COPY --from=mlu-environment /opt/topfive/venv /opt/topfive/venv
COPY --from=mlu-environment /topfive /
# The environment is last on the path, so `python3` is still the SDK's.
ENV PATH=$PATH:/opt/topfive/venv/bin PYTHONPATH=
# The processes that load the SDK find its libraries in NEUWARE_HOME. No other process has them on its
# library path. HOME is a writable folder.
ENV NEUWARE_HOME=/usr/local/neuware HOME=/tmp

ARG ARTIFACT=docker/no-artifact
COPY ${ARTIFACT} /models
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="topfive" \
      org.opencontainers.image.description="A trained image classifier as a service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.authors="The topfive authors" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    TOPFIVE_ARTIFACT=/models \
    TOPFIVE_DRAIN_TIMEOUT_S=5 \
    TOPFIVE_HOST=0.0.0.0 \
    TOPFIVE_REVISION=${REVISION}
EXPOSE 8080
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["topfive", "health", "--quiet"]
ENTRYPOINT ["tini", "--", "topfive"]
CMD ["serve"]


FROM ${PYTHON_IMAGE} AS cpu
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.base.name="${PYTHON_IMAGE}"
COPY --from=package /usr/bin/tini-static /usr/bin/tini
COPY --from=cpu-environment /opt/topfive/venv /opt/topfive/venv
COPY --from=cpu-environment /topfive /
ENV PATH=/opt/topfive/venv/bin:$PATH

ARG ARTIFACT=docker/no-artifact
COPY ${ARTIFACT} /models
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="topfive" \
      org.opencontainers.image.description="A trained image classifier as a service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.authors="The topfive authors" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    TOPFIVE_ARTIFACT=/models \
    TOPFIVE_DRAIN_TIMEOUT_S=5 \
    TOPFIVE_HOST=0.0.0.0 \
    TOPFIVE_REVISION=${REVISION}
EXPOSE 8080
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["topfive", "health", "--quiet"]
ENTRYPOINT ["tini", "--", "topfive"]
CMD ["serve"]
