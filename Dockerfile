# syntax=docker/dockerfile:1
# One image for Beam's workers, for a Flex Template's launcher and for the command itself; BuildKit builds it.
#   docker build -t REGISTRY/featuremill:TAG .
#   docker build -t REGISTRY/featuremill-gpu:TAG --build-arg EXTRAS=gcp,gpu .
# BEAM is the apache-beam version of constraints.txt; tests/distributed/test_dataflow.py compares them.
ARG BEAM=2.77.0
ARG PYTHON=3.11

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS launcher

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

# All wheels at their tested versions, made where compilers may be needed and sources may lie about.
FROM beam AS wheels
ARG EXTRAS=gcp
WORKDIR /src
COPY setup.py pyproject.toml constraints.txt README.md LICENSE ./
COPY featuremill featuremill
COPY pipeline pipeline
COPY transforms transforms
# An install without a compiler goes on without the engine winograd; this one must not.
RUN pip wheel --no-cache-dir -c constraints.txt --wheel-dir /wheels ".[${EXTRAS}]" \
    && python -m zipfile --list /wheels/featuremill-*.whl | grep --quiet winograd/_library

# Not on Beam's own image: of the packages that it holds beside Beam, some refuse the versions that are tested here.
FROM python:${PYTHON}.15-slim-bookworm AS worker
ARG EXTRAS=gcp
# Into the system's Python: Beam's boot makes each worker's environment on top of it.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    --mount=type=bind,from=wheels,source=/src/constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --no-index --find-links /wheels -c /constraints.txt "featuremill[${EXTRAS}]" \
    && pip check
COPY --from=beam /opt/apache/beam /opt/apache/beam
# `imagenet` bakes Keras's weights in, `none` leaves them out (for --weights gs://…).
ARG WEIGHTS=imagenet
ARG BACKBONE=vgg19
# Keras's cache folder. Our own loader downloads into it, checks Keras's published hash, and renames when all is there.
ENV KERAS_HOME=/opt/keras
RUN case "${WEIGHTS}" in \
      none) ;; \
      imagenet) python -c "from pipeline.extraction.options import ExtractOptions as O; \
O(inputs=('x',), output='/tmp/x', backbone='${BACKBONE}').load_weights()" && chmod -R a+rX /opt/keras ;; \
      *) echo "WEIGHTS is imagenet or none, not ${WEIGHTS}" >&2; exit 1 ;; \
    esac
# A Flex Template's launcher, and what it starts.
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY flex_template/launch.py /opt/featuremill/launch.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/featuremill/launch.py
# Root, as in Beam's own image: Dataflow mounts its folders for root. Beam starts its workers by this entry point.
ENTRYPOINT ["/opt/apache/beam/boot"]

# For people, as nobody in particular:  docker build --target cli …;  docker run IMAGE extract gs://… --output gs://…
FROM worker AS cli
RUN useradd --create-home --uid 10001 featuremill
USER featuremill
WORKDIR /home/featuremill
# For `map`: whoever `docker run --user` names has no home, and Numba, which umap uses, refuses to start without a cache.
ENV NUMBA_CACHE_DIR=/tmp/numba
ENTRYPOINT ["featuremill"]

# What is built without --target.
FROM worker
